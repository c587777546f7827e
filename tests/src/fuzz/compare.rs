//! What was seen beside what must be.

use std::fmt::Write as _;

use super::code::to_hex;
use crate::model::{Outcome, Prediction};

/// How many flows are remembered; a new one takes the place of an old one.
const FLOWS: usize = 1 << 14;

/// A flow, and the numbers that its packets were seen with: UDP source port, NVGRE flow id.
type Flow = (u64, Option<u16>, Option<u8>);

/// Compares, and remembers what must be the same for all packets of a flow.
#[derive(Debug)]
pub struct Comparison {
    flows: Vec<Flow>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self { flows: vec![(0, None, None); FLOWS] }
    }
}

impl Comparison {
    /// Forgets all flows.
    pub fn forget(&mut self) {
        self.flows.fill((0, None, None));
    }

    /// Says how what was seen differs from what must be. What is free is made zero in what was seen.
    ///
    /// # Errors
    /// It does.
    pub fn check(&mut self, prediction: &Prediction, seen: &mut Outcome) -> Result<(), String> {
        let Prediction { outcome, free, flow, .. } = prediction;
        for (output, free) in seen.outputs.iter_mut().zip(free) {
            let (port, id) = free.settle(&mut output.bytes)?;
            if let Some(flow) = flow {
                self.same_flow(*flow, port, id)?;
            }
        }
        if seen == outcome { Ok(()) } else { Err(difference(outcome, seen)) }
    }

    fn same_flow(&mut self, flow: u64, port: Option<u16>, id: Option<u8>) -> Result<(), String> {
        let slot = &mut self.flows[flow as usize % FLOWS];
        if slot.0 != flow {
            *slot = (flow, None, None);
        }
        let differs = |was: Option<u32>, is: Option<u32>| was.zip(is).is_some_and(|(was, is)| was != is);
        if differs(slot.1.map(u32::from), port.map(u32::from))
            || differs(slot.2.map(u32::from), id.map(u32::from))
        {
            return Err(format!("one flow, two numbers: {slot:x?}, {port:x?}, {id:x?}"));
        }
        slot.1 = slot.1.or(port);
        slot.2 = slot.2.or(id);
        Ok(())
    }
}

/// In words, what of an outcome differs.
fn difference(wanted: &Outcome, seen: &Outcome) -> String {
    let mut text = String::new();
    let mut part = |name: &str, wanted: &dyn std::fmt::Debug, seen: &dyn std::fmt::Debug| {
        let (wanted, seen) = (format!("{wanted:x?}"), format!("{seen:x?}"));
        if wanted != seen {
            let _infallible = writeln!(text, "{name}: must be\n {wanted}\nis\n {seen}");
        }
    };
    part("end", &wanted.end, &seen.end);
    part("received", &wanted.received, &seen.received);
    part("transmitted", &wanted.transmitted, &seen.transmitted);
    part("drops", &wanted.drops, &seen.drops);
    part("reports", &wanted.reports, &seen.reports);
    part("flooded", &wanted.flooded, &seen.flooded);
    part("answered", &wanted.answered, &seen.answered);
    part("claims", &wanted.claims, &seen.claims);
    part("binding confirmed", &wanted.confirmed, &seen.confirmed);
    part("binding contested", &wanted.contested, &seen.contested);
    part("too big", &wanted.too_big, &seen.too_big);
    part("age noted", &wanted.seen, &seen.seen);
    part("sequence numbers", &wanted.numbers, &seen.numbers);
    part("charged", &wanted.charged, &seen.charged);
    part("outputs", &wanted.outputs.len(), &seen.outputs.len());
    for (i, (wanted, seen)) in wanted.outputs.iter().zip(&seen.outputs).enumerate() {
        part(&format!("output {i} to"), &(wanted.egress, wanted.mark), &(seen.egress, seen.mark));
        if wanted.bytes != seen.bytes {
            let first = wanted.bytes.iter().zip(&seen.bytes).position(|(a, b)| a != b);
            let (wanted, seen) = (to_hex(&wanted.bytes), to_hex(&seen.bytes));
            part(&format!("output {i} from byte {first:?} on"), &wanted, &seen);
        }
    }
    text
}

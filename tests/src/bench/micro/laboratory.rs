//! Programs in test runs, over tables that were filled as the daemon fills them.

use std::{fs, path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    maps::{Array, HashMap, MapData},
    programs::{TestRun as _, TestRunOptions, xdp::XdpMode},
};
use mgre_common::{
    bench::{Settings, Step},
    endpoint::{EndpointIndex, EndpointKey, Owner, endpoint_address, endpoint_kind},
    fdb::FdbKey,
    table::{
        Adjacency, FloodList, Indexed, Port, PortSlot, Template, adjacency_flag, port_flag, segment_flag,
        template_flag,
    },
    target::Target,
    template::{DontFragment, Encapsulation, Key, Link, Outer, Tos},
    wire::MacAddr,
};
use mgre_user::datapath::{
    fdb::Fdb,
    load::{self, Capacity, Loaded},
    shared::SharedArray,
};

use nix::time::{ClockId, clock_gettime};

use super::addresses::{SEGMENT, STEPS, endpoint, key, local};
use crate::{bench::stop, netns::Netns};

/// The GRE key of the segment.
pub const GRE_KEY: u32 = 7;
/// The port's interface; the far end has one more.
const PORT: u32 = 10;
/// An underlay to send XDP frames to; the far end has one more.
pub const CABLE: u32 = 20;
/// An underlay that has no queue: a bridge without ports, which throws everything away.
pub const SINK: u32 = 30;
/// What a measurement lasts at least.
const LEAST_SECONDS: f64 = 0.015;
/// How often it is taken; the least counts, because what disturbs it adds to it.
const TAKES: usize = 3;

/// The port's station.
pub const STATION: MacAddr = MacAddr([0x06, 0, 0, 0, 0, 1]);

/// How much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Addresses, spread over the peers in turn.
    pub entries: u32,
    /// Peers.
    pub peers: u32,
    /// Whether they are peers over IPv6.
    pub v6: bool,
}

/// A network namespace with two pairs of interfaces.
#[derive(Debug)]
pub struct Laboratory {
    netns: Netns,
}

/// Loaded programs, in a laboratory.
pub struct Programs {
    loaded: Loaded,
    fdb: Fdb,
    /// Every address, by the kernel's own hash map.
    hash: HashMap<MapData, u64, u64>,
    steps: SharedArray<StepCell>,
    settings: Array<MapData, SettingsCell>,
    underlay: u32,
    v6: bool,
}

/// A [`Step`] in shared memory.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct StepCell(Step);

// SAFETY: plain words; the datapath never writes them, and they are only ever copied.
unsafe impl mgre_user::datapath::shared::Shared for StepCell {}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct SettingsCell(Settings);

// SAFETY: the type is `bytemuck::Pod`: any bits are a value and no byte is padding.
unsafe impl aya::Pod for SettingsCell {}

impl Laboratory {
    /// Makes the namespace.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        let netns = Netns::new("lab")?;
        for which in ["all", "default"] {
            netns.sysctl(&format!("ipv6/conf/{which}/disable_ipv6"), "1")?;
        }
        for index in [PORT, CABLE] {
            let far = index + 1;
            netns.ip(&format!(
                "link add near{index} index {index} type veth peer name far{index} index {far}\n\
                 link set near{index} up\nlink set far{index} up\n"
            ))?;
        }
        netns.ip(&format!("link add sink index {SINK} type bridge\nlink set sink up\n"))?;
        Ok(Self { netns })
    }

    /// Runs a function in it.
    ///
    /// # Errors
    /// The function's own, or the namespace cannot be entered.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.enter(function)?
    }
}

impl Programs {
    /// Loads an object and fills its tables, with this interface as the underlay; in a laboratory.
    ///
    /// # Errors
    /// The object is not the benchmark's, or the kernel refuses it.
    pub fn load(object: &Path, size: Size, underlay: u32) -> Result<Self> {
        let bytes = fs::read(object).with_context(|| object.display().to_string())?;
        let capacity = Capacity { fdb_entries: size.entries + 1, adjacencies: size.peers.max(16) };
        let sizes = [("bench_steps", STEPS), ("bench_hash", size.entries)];
        let mut loaded = load::load_with(&bytes, capacity, &sizes)?;
        load::renew_lease(&mut loaded.programs)?;
        let hash = HashMap::try_from(loaded.programs.take_map("bench_hash").context("no bench_hash")?)?;
        let steps = match loaded.programs.take_map("bench_steps").context("no bench_steps")? {
            aya::maps::Map::Array(data) => SharedArray::map(&data)?,
            _ => bail!("bench_steps is not an array"),
        };
        let settings =
            Array::try_from(loaded.programs.take_map("bench_settings").context("no bench_settings")?)?;
        let table = loaded.tables.fdb.take().context("no FDB")?;
        let fdb = Fdb::new(table, loaded.fdb_hash(), capacity.fdb_entries);
        let mut this = Self { loaded, fdb, hash, steps, settings, underlay, v6: size.v6 };
        this.fill(size)?;
        Ok(this)
    }

    /// Makes the interfaces ready for XDP, as its test runs want them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn get_ready_for_xdp(&mut self) -> Result<()> {
        for index in [PORT, self.underlay] {
            load::xdp(&mut self.loaded.programs, load::XDP_PORT_PROGRAMS[0])?
                .attach_to_if_index(index, XdpMode::Driver)?;
            self.loaded.tables.devices.insert(index, index, None, 0)?;
        }
        Ok(())
    }

    fn fill(&mut self, size: Size) -> Result<()> {
        self.fill_port()?;
        for peer in 0..size.peers {
            self.fill_peer(peer)?;
        }
        let list = FloodList { start: 0, ports: 1, adjacencies: size.peers as u16 };
        let segment = self.loaded.tables.segments.get(SEGMENT.into()).context("no segment")?;
        segment.flood.store(list.to_bits(), Ordering::Relaxed);
        segment.flags.store(segment_flag::VALID, Ordering::Release);
        for number in 0..size.entries {
            let target = Target::adjacency(number % size.peers);
            self.fdb.set(key(number), target, Some(1))?;
            self.hash.insert(key(number).0, u64::from(target.to_bits()), 0)?;
            if number.is_multiple_of(1 << 16) {
                stop::check()?;
            }
        }
        Ok(self.fdb.set(FdbKey::new(SEGMENT, STATION), Target::port(0), Some(1))?)
    }

    fn fill_port(&mut self) -> Result<()> {
        let tables = &mut self.loaded.tables;
        let port: &Port = tables.ports.get(0).context("no port")?;
        port.ifindex.store(PORT, Ordering::Relaxed);
        port.segment.store(SEGMENT.into(), Ordering::Relaxed);
        port.max_frame.store(1518, Ordering::Relaxed);
        port.flags.store(port_flag::VALID | port_flag::UP | port_flag::EXPRESS, Ordering::Release);
        tables
            .port_slots
            .get(PortSlot::index(PORT))
            .context("no slot")?
            .set(PORT, Indexed { port: 0, segment: SEGMENT.into() });
        self.flood_slot(0, Target::port(0))
    }

    fn fill_peer(&mut self, peer: u32) -> Result<()> {
        let adjacency = self.loaded.tables.adjacencies.ptr(peer).context("no adjacency")?;
        // SAFETY: this is the only writer, and no program runs yet.
        let index =
            unsafe { Adjacency::write_idle(adjacency.as_ptr(), template(peer, self.underlay, self.v6)) };
        let adjacency = self.loaded.tables.adjacencies.get(peer).context("no adjacency")?;
        adjacency.activate(index);
        adjacency.segment.store(SEGMENT.into(), Ordering::Relaxed);
        adjacency.flags.store(adjacency_flag::VALID, Ordering::Release);
        let endpoint = EndpointKey {
            remote: endpoint_address(endpoint(peer, self.v6)),
            local: endpoint_address(local(self.v6)),
            key: GRE_KEY.to_be(),
            kind: endpoint_kind::KEYED,
        };
        let words = endpoint.words();
        let slots = self.loaded.tables.endpoint_slots.as_ref().context("no endpoint index")?;
        let places = EndpointIndex { shift: self.loaded.config.endpoint_shift }.slots(&words);
        if let Some(slot) = places.into_iter().filter_map(|slot| slots.get(slot)).find(|slot| slot.is_free())
        {
            slot.insert(&words, Owner { adjacency: peer, segment: SEGMENT, flags: 0 });
        }
        self.loaded.tables.endpoints.as_mut().context("no endpoints")?.map.insert(words, peer, 0)?;
        self.flood_slot(1 + peer, Target::adjacency(peer))
    }

    fn flood_slot(&self, index: u32, target: Target) -> Result<()> {
        let slots = self.loaded.tables.flood.as_ref().context("no flood lists")?;
        slots.get(index).context("no slot")?.0.store(target.to_bits(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether the underlay is IPv6.
    pub const fn is_v6(&self) -> bool {
        self.v6
    }

    /// Sets the sequence.
    pub fn go_through(&self, steps: &[Step]) {
        for (index, step) in steps.iter().enumerate() {
            self.steps.write(index as u32, StepCell(*step));
        }
    }

    /// What programs are told besides.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set(&mut self, copies: u32) -> Result<()> {
        let (ifindex, v6) = (self.underlay, self.v6.into());
        let settings = Settings { mask: STEPS - 1, copies, ifindex, v6, ..Settings::default() };
        Ok(self.settings.set(0, SettingsCell(settings), 0)?)
    }

    /// Nanoseconds that one run of an XDP program takes. Each must return what is wanted.
    ///
    /// # Errors
    /// The kernel refuses, or the program does not do what it should.
    pub fn time_xdp(&mut self, name: &str, packet: &[u8], wanted: u32) -> Result<f64> {
        // The fields of `struct xdp_md` that a test run may set.
        const DATA_END: usize = 4;
        const INGRESS_IFINDEX: usize = 12;
        let mut context = [0_u8; 24];
        context[DATA_END..DATA_END + 4].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&PORT.to_ne_bytes());
        let program = load::xdp(&mut self.loaded.programs, name)?;
        let mut repeat = 1000_u32;
        let mut takes = Vec::new();
        loop {
            stop::check()?;
            let options = TestRunOptions {
                data_in: Some(packet),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::default()
            };
            let start = cpu_seconds()?;
            let result = program.test_run(options).with_context(|| format!("cannot run {name}"))?;
            let seconds = cpu_seconds()? - start;
            ensure!(result.return_value == wanted, "{name} returned {}", result.return_value);
            if seconds >= LEAST_SECONDS {
                takes.push(seconds * 1e9 / f64::from(repeat));
                if takes.len() == TAKES {
                    return takes.into_iter().min_by(f64::total_cmp).context("no take");
                }
                continue;
            }
            repeat = (f64::from(repeat) * (LEAST_SECONDS * 1.3 / seconds).clamp(2.0, 50.0)) as u32;
        }
    }

    /// Nanoseconds that one run of a TC program takes on a fresh packet, system call included.
    ///
    /// # Errors
    /// The kernel refuses, or the program does not do what it should.
    pub fn time_tc(&mut self, name: &str, packet: &[u8], wanted: u32) -> Result<f64> {
        // The field of `struct __sk_buff` that a test run may set.
        const IFINDEX: usize = 40;
        let mut context = [0_u8; 192];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&PORT.to_ne_bytes());
        let program = load::classifier(&mut self.loaded.programs, name)?;
        let (mut runs, start) = (0_u32, cpu_seconds()?);
        while cpu_seconds()? - start < LEAST_SECONDS {
            stop::check()?;
            let options =
                TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), ..TestRunOptions::default() };
            let result = program.test_run(options).with_context(|| format!("cannot run {name}"))?;
            ensure!(result.return_value == wanted, "{name} returned {}", result.return_value);
            runs += 1;
        }
        Ok((cpu_seconds()? - start) * 1e9 / f64::from(runs))
    }

    /// Frames flooded and copies made so far.
    pub fn flooded(&self) -> (u64, u64) {
        let rows = self.loaded.config.traffic_rows;
        let rows = (0..rows)
            .filter_map(|row| self.loaded.tables.segment_traffic.read(u32::from(SEGMENT) * rows + row));
        rows.fold((0, 0), |(frames, copies), row| (frames + row.flood_frames, copies + row.flood_copies))
    }
}

/// CPU time of this thread, which other work on the machine does not add to.
fn cpu_seconds() -> Result<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?).as_secs_f64())
}

fn template(peer: u32, ifindex: u32, v6: bool) -> Template {
    let outer = Outer {
        source: local(v6),
        destination: endpoint(peer, v6),
        ttl: 64,
        tos: Tos::Fixed(0),
        dont_fragment: DontFragment::Set,
        key: Key::Plain(GRE_KEY),
        checksum: false,
        sequence: false,
        encapsulation: Encapsulation::Gre,
    };
    let link = Link {
        ifindex,
        source_mac: MacAddr([2, 0, 0, 0, 0xee, 1]),
        destination_mac: Some(MacAddr([2, 0, 0, 0, 0xee, 2])),
        mtu: 1500,
    };
    let mut template = Template::new(&outer, Some(&link));
    template.flags |= template_flag::EXPRESS;
    template
}

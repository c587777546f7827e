//! Loads the programs and maps into the kernel.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use aya::maps::xdp::DevMapHash;
use aya::maps::{HashMap, Map, MapData, ProgramArray, RingBuf};
use aya::programs::{Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use mgre_common::counters::{Drops, SegmentTraffic, Traffic, drop_shards, traffic_rows};
use mgre_common::endpoint::{EndpointIndex, EndpointSlot};
use mgre_common::fdb::{Bucket, FdbHash, buckets_for, hash_shift, table_len};
use mgre_common::map_name;
use mgre_common::near::NearMacs;
use mgre_common::neighbor::{NeighborKey, NeighborRecord};
use mgre_common::storm::Storm;
use mgre_common::table::{
    Adjacency, Clock, Config, FloodSlot, MAX_PORTS, MAX_SEGMENTS, Port, PortSlot, Segment, Sequence, VlanKey,
};
use mgre_common::tally::Tally;

use super::calls;
use super::endpoints::EndpointMap;
use super::handed::Handed;
use super::refusal::{Refused, What};
use super::shared::{Shared, SharedArray};

/// Name of the program for frames from ports.
pub const PORT_PROGRAM: &str = "mgre_port";
/// Name of the program for packets from the underlay.
pub const UNDERLAY_PROGRAM: &str = "mgre_underlay";
/// Names of the XDP programs for frames from ports: for buffers of one page, and of several.
pub const XDP_PORT_PROGRAMS: [&str; 2] = ["mgre_xport", "mgre_xport_mb"];
/// Names of the XDP programs for packets from the underlay: for buffers of one page, and of several.
pub const XDP_UNDERLAY_PROGRAMS: [&str; 2] = ["mgre_xunder", "mgre_xunder_mb"];
/// Name of the program for both ends of the slow interface.
pub const SLOW_PROGRAM: &str = "mgre_slow";
/// Name of the program that forwards what needs more than its headers.
pub const FORWARD_PROGRAM: &str = "mgre_forward";
/// Name of the program that floods.
pub const REPLICATE_PROGRAM: &str = "mgre_replicate";
const PROBE_PROGRAM: &str = "mgre_probe";
const LEASE_PROGRAM: &str = "mgre_lease";

/// Addresses of this host, of one IP version, for which there is room with as many peers as there may be. Each makes an
/// endpoint for each adjacency, and one for each peer.
const LOCALS: u32 = 8;

/// How much an instance has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// FDB entries.
    pub fdb_entries: u32,
    /// Adjacencies.
    pub adjacencies: u32,
}

/// The maps, opened and mapped.
pub struct Tables {
    /// [`map_name::PORTS`].
    pub ports: SharedArray<Port>,
    /// [`map_name::SEGMENTS`].
    pub segments: SharedArray<Segment>,
    /// [`map_name::ADJACENCIES`].
    pub adjacencies: SharedArray<Adjacency>,
    /// [`map_name::FLOOD`], until its writer takes it.
    pub flood: Option<SharedArray<FloodSlot>>,
    /// [`map_name::FDB`], until its writer takes it.
    pub fdb: Option<SharedArray<Bucket>>,
    /// [`map_name::CLOCK`].
    pub clock: SharedArray<Clock>,
    /// [`map_name::TRAFFIC`].
    pub traffic: Arc<SharedArray<Traffic>>,
    /// [`map_name::DROPS`].
    pub drops: Arc<SharedArray<Drops>>,
    /// [`map_name::SEGMENT_TRAFFIC`].
    pub segment_traffic: Arc<SharedArray<SegmentTraffic>>,
    /// [`map_name::DEVICES`].
    pub devices: DevMapHash<MapData>,
    /// [`map_name::NEAR_MACS`].
    pub near_macs: SharedArray<NearMacs>,
    /// [`map_name::PORT_SLOTS`].
    pub port_slots: SharedArray<PortSlot>,
    /// [`map_name::ENDPOINT_SLOTS`], until its writer takes it.
    pub endpoint_slots: Option<SharedArray<EndpointSlot>>,
    /// [`map_name::PORT_INDEX`].
    pub port_index: HashMap<MapData, u32, u32>,
    /// [`map_name::VLAN_PORTS`].
    pub vlan_ports: HashMap<MapData, VlanKey, u32>,
    /// [`map_name::SEQUENCES`].
    pub sequences: SharedArray<Sequence>,
    /// [`map_name::NEIGHBORS`], until its writer takes it.
    pub neighbors: Option<HashMap<MapData, NeighborKey, NeighborRecord>>,
    /// [`map_name::STORMS`].
    pub storms: SharedArray<Storm>,
    /// [`map_name::ENDPOINTS`], until its writer takes it.
    pub endpoints: Option<EndpointMap>,
    /// [`map_name::TALLIES`], until its writer takes it.
    pub tallies: Option<SharedArray<Tally>>,
    /// Those that the next daemon goes on from.
    pub handed: Handed,
}

/// Everything loaded, nothing attached.
pub struct Loaded {
    /// The programs.
    pub programs: Ebpf,
    /// The tables.
    pub tables: Tables,
    /// The event ring, until its reader takes it.
    pub events: Option<RingBuf<MapData>>,
    /// The ring of what did not fit, until its reader takes it.
    pub too_big: Option<RingBuf<MapData>>,
    /// The programs that others go on in, until the array is pinned. It must stay open.
    pub calls: Option<ProgramArray<MapData>>,
    /// What the programs were told.
    pub config: Config,
}

impl Loaded {
    /// How the FDB finds a bucket.
    pub fn fdb_hash(&self) -> FdbHash {
        FdbHash { shift: self.config.fdb_shift, multipliers: self.config.fdb_multipliers }
    }
}

/// Loads an object.
///
/// # Errors
/// The kernel refuses a map or a program: [`Refused`], which [`super::refusal::explain`] explains.
pub fn load(object: &[u8], capacity: Capacity) -> Result<Loaded> {
    load_with(object, capacity, &[])
}

/// Loads an object that has more programs, and maps of its own; gives those so many entries.
///
/// # Errors
/// As [`load`].
pub fn load_with(object: &[u8], capacity: Capacity, sizes: &[(&str, u32)]) -> Result<Loaded> {
    let mut config = config(capacity)?;
    config.strip_flags = probe_strip_flags(object)?;
    let mut programs = load_object(object, capacity, &config, sizes)?;
    // All of them while all maps are open; the probe has done its work.
    for (name, program) in programs.programs_mut().filter(|(name, _)| *name != PROBE_PROGRAM) {
        load_program(name, program)?;
    }
    let calls = Some(calls::fill(&mut programs)?);
    let tables = Tables::take(&mut programs)?;
    let events = Some(RingBuf::try_from(take_map(&mut programs, map_name::EVENTS)?)?);
    let too_big = Some(RingBuf::try_from(take_map(&mut programs, map_name::TOO_BIG)?)?);
    Ok(Loaded { programs, tables, events, too_big, calls, config })
}

fn load_program(name: &str, program: &mut Program) -> Result<()> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => bail!("{name} is a program of an unknown kind"),
    };
    loaded.with_context(|| Refused(What::Program(name.to_owned())))
}

/// What the verifier writes of a program that it refuses; none if it takes it.
pub(super) fn verifier_log(
    object: &[u8],
    capacity: Capacity,
    name: &str,
    level: VerifierLogLevel,
) -> Result<Option<String>> {
    let mut programs = load_logged(object, capacity, &config(capacity)?, &[], level)?;
    let program = programs.program_mut(name).with_context(|| format!("no program {name}"))?;
    let Err(error) = load_program(name, program) else { return Ok(None) };
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::LoadError { verifier_log, .. }) => Ok(Some(verifier_log.to_string())),
        _ => Err(error),
    }
}

/// What programs are told, but for what the kernel can do.
fn config(capacity: Capacity) -> Result<Config> {
    let cpus = possible_cpus()?;
    Ok(Config {
        fdb_multipliers: random_multipliers()?,
        fdb_shift: hash_shift(buckets_for(capacity.fdb_entries)),
        traffic_rows: traffic_rows(cpus),
        drop_shard_mask: drop_shards(cpus) - 1,
        strip_flags: 0,
        endpoint_shift: EndpointIndex::new(EndpointIndex::slots_for(capacity.adjacencies)).shift,
        reserved: 0,
    })
}

fn load_object(object: &[u8], capacity: Capacity, config: &Config, sizes: &[(&str, u32)]) -> Result<Ebpf> {
    // A log takes far longer than the rest.
    load_logged(object, capacity, config, sizes, VerifierLogLevel::DISABLE)
}

fn load_logged(
    object: &[u8],
    capacity: Capacity,
    config: &Config,
    sizes: &[(&str, u32)],
    level: VerifierLogLevel,
) -> Result<Ebpf> {
    let rows = 1 + MAX_PORTS + capacity.adjacencies;
    // The addresses themselves are among them; and where one is exchanged, old and new are there for a moment.
    let endpoints = capacity.adjacencies.saturating_mul(2 * (LOCALS + 1)).saturating_add(256);
    let mut loader = EbpfLoader::new();
    for (map, entries) in sizes {
        loader.map_max_entries(map, *entries);
    }
    loader
        .verifier_log_level(level)
        .override_global("CONFIG", config, true)
        .map_max_entries(map_name::ADJACENCIES, capacity.adjacencies)
        .map_max_entries(map_name::SEQUENCES, capacity.adjacencies)
        .map_max_entries(map_name::ENDPOINTS, endpoints)
        .map_max_entries(map_name::ENDPOINT_SLOTS, EndpointIndex::slots_for(capacity.adjacencies))
        .map_max_entries(map_name::FDB, table_len(buckets_for(capacity.fdb_entries)))
        .map_max_entries(map_name::STORMS, rows)
        .map_max_entries(map_name::TRAFFIC, rows * config.traffic_rows)
        .map_max_entries(map_name::DROPS, rows * (config.drop_shard_mask + 1))
        .map_max_entries(map_name::SEGMENT_TRAFFIC, (1 + MAX_SEGMENTS) * config.traffic_rows)
        .load(object)
        .context(Refused(What::Maps))
}

/// Which flags the kernel knows for stripping headers: asked by trying them.
fn probe_strip_flags(object: &[u8]) -> Result<u32> {
    const SHIFT: u32 = 7;
    let config = Config {
        fdb_multipliers: [1, 1],
        fdb_shift: hash_shift(buckets_for(1)),
        traffic_rows: 1,
        drop_shard_mask: 0,
        strip_flags: 0,
        endpoint_shift: EndpointIndex::new(EndpointIndex::slots_for(1)).shift,
        reserved: 0,
    };
    let mut programs = load_object(object, Capacity { fdb_entries: 1, adjacencies: 1 }, &config, &[])?;
    let program = programs.program_mut(PROBE_PROGRAM).context("the eBPF object has no probe")?;
    load_program(PROBE_PROGRAM, program)?;
    let probe = classifier(&mut programs, PROBE_PROGRAM)?;
    let mut packet = [0_u8; 512];
    packet[12] = 0x08;
    packet[14] = 0x45;
    let result = probe
        .test_run(TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() })
        .context("cannot ask the kernel what it can strip")?;
    Ok(result.return_value << SHIFT)
}

/// Renews the lease on next hops: for so long the datapath goes by the templates alone.
///
/// # Errors
/// The kernel does not run the program.
pub fn renew_lease(programs: &mut Ebpf) -> Result<()> {
    let packet = [0_u8; 64];
    let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() };
    classifier(programs, LEASE_PROGRAM)?.test_run(options).context("cannot renew the lease on next hops")?;
    Ok(())
}

/// A TC program by name.
///
/// # Errors
/// The object has no such program.
pub fn classifier<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    match programs.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => bail!("the eBPF object has no TC program {name}"),
    }
}

/// An XDP program by name.
///
/// # Errors
/// The object has no such program.
pub fn xdp<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    match programs.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => bail!("the eBPF object has no XDP program {name}"),
    }
}

fn take_map(programs: &mut Ebpf, name: &str) -> Result<Map> {
    programs.take_map(name).with_context(|| format!("the eBPF object has no map {name}"))
}

fn shared<T: Shared>(programs: &mut Ebpf, name: &str) -> Result<SharedArray<T>> {
    match take_map(programs, name)? {
        Map::Array(data) => SharedArray::map(&data),
        _ => bail!("{name} is not an array"),
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Tables {
    fn take(programs: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            handed: Handed::of(programs)?,
            tallies: Some(shared(programs, map_name::TALLIES)?),
            ports: shared(programs, map_name::PORTS)?,
            segments: shared(programs, map_name::SEGMENTS)?,
            adjacencies: shared(programs, map_name::ADJACENCIES)?,
            flood: Some(shared(programs, map_name::FLOOD)?),
            fdb: Some(shared(programs, map_name::FDB)?),
            clock: shared(programs, map_name::CLOCK)?,
            traffic: Arc::new(shared(programs, map_name::TRAFFIC)?),
            drops: Arc::new(shared(programs, map_name::DROPS)?),
            segment_traffic: Arc::new(shared(programs, map_name::SEGMENT_TRAFFIC)?),
            near_macs: shared(programs, map_name::NEAR_MACS)?,
            port_slots: shared(programs, map_name::PORT_SLOTS)?,
            endpoint_slots: Some(shared(programs, map_name::ENDPOINT_SLOTS)?),
            devices: DevMapHash::try_from(take_map(programs, map_name::DEVICES)?)?,
            port_index: HashMap::try_from(take_map(programs, map_name::PORT_INDEX)?)?,
            vlan_ports: HashMap::try_from(take_map(programs, map_name::VLAN_PORTS)?)?,
            sequences: shared(programs, map_name::SEQUENCES)?,
            neighbors: Some(HashMap::try_from(take_map(programs, map_name::NEIGHBORS)?)?),
            storms: shared(programs, map_name::STORMS)?,
            endpoints: Some(EndpointMap::new(take_map(programs, map_name::ENDPOINTS)?)?),
        })
    }
}

fn possible_cpus() -> Result<u32> {
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| error_at(path, error))?;
    Ok(u32::try_from(cpus)?)
}

fn error_at(path: &str, error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("cannot read {path}"))
}

/// Two odd numbers that nobody outside can guess.
fn random_multipliers() -> Result<[u64; 2]> {
    let mut bytes = [0_u8; 16];
    std::io::Read::read_exact(
        &mut std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?,
        &mut bytes,
    )
    .context("cannot read /dev/urandom")?;
    let numbers: [u64; 2] = bytemuck::cast(bytes);
    Ok(numbers.map(|number| number | 1))
}

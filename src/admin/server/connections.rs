//! Who is connected: whose connections make room for new ones, and which requests may begin.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::ConnectionLimits;
use crate::clock;
use crate::model::{KeyId, OrgId};

/// How long requests that are under way get when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// One organization has as many connections as so many keys may have.
const KEYS_PER_ORG: usize = 2;

/// All connections.
pub(super) struct Connections {
    places: ConnectionLimits,
    all: RefCell<HashMap<u64, Connection>>,
    next: Cell<u64>,
}

pub(super) struct Connection {
    address: IpAddr,
    /// It belongs to a proxy, which brings many clients.
    is_proxy: bool,
    /// A request is under way.
    busy: Option<UnderWay>,
    /// An answer waits to be taken by the client.
    is_unread: bool,
    /// When it became idle, or when its answer began to wait or was taken.
    since: Instant,
    key: Option<(KeyId, OrgId)>,
    task: Option<tokio::task::AbortHandle>,
}

impl Connection {
    /// Whether its client waits for something, or has not taken all of it.
    fn is_answering(&self) -> bool {
        self.busy.is_some() || self.is_unread
    }

    /// Whether it can be ended where room is needed.
    fn makes_room(&self) -> bool {
        self.is_unread || self.busy.is_none_or(|busy| busy.waits)
    }
}

/// What a request is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whether the process lives: always answered, and at once.
    Liveness,
    /// Readiness and metrics.
    Operations,
    /// Everything else.
    Api,
}

/// What is known of a request that is under way.
#[derive(Clone, Copy)]
struct UnderWay {
    kind: Kind,
    /// Whose it is, also where the connection is a proxy's.
    client: IpAddr,
    /// It waits for something that costs nothing for one more, and is not counted.
    waits: bool,
}

impl Connections {
    pub(super) fn new(places: ConnectionLimits) -> Connections {
        Connections { places, all: RefCell::default(), next: Cell::new(0) }
    }

    /// The slot of a new connection from `peer`, if there is a place for it.
    pub(super) fn admit(self: &Rc<Self>, peer: SocketAddr) -> Option<SlotGuard> {
        let address = network_of(peer.ip());
        let is_proxy = self.places.proxies.iter().any(|network| network.contains(&peer.ip().to_canonical()));
        if !self.has_place_for(address, is_proxy) {
            return None;
        }
        let id = self.next.get();
        self.next.set(id + 1);
        let entry = Connection {
            address,
            is_proxy,
            busy: None,
            is_unread: false,
            since: clock::now(),
            key: None,
            task: None,
        };
        self.all.borrow_mut().insert(id, entry);
        Some(SlotGuard(Rc::new(ConnectionSlot {
            id,
            connections: Rc::clone(self),
            reads: Cell::new(true),
            body: Cell::new(None),
            paused: RefCell::new(None),
            begun: Cell::new(0),
        })))
    }

    /// Makes room for a connection from `address`, if need be and if that is possible.
    fn has_place_for(&self, address: IpAddr, is_proxy: bool) -> bool {
        let all = self.all.borrow();
        let of_address = all.values().filter(|one| one.address == address).count();
        let crowded = !is_proxy && of_address >= self.places.per_address;
        let full = all.len() >= self.places.total;
        drop(all);
        !(crowded || full) || self.make_room(|one| !crowded || one.address == address)
    }

    /// Ends a connection of those that `may` be ended, and whose end interrupts nothing but what its client
    /// does not take: one from where most of them come, an idle one if there is one, and the oldest.
    pub(super) fn make_room(&self, may: impl Fn(&Connection) -> bool) -> bool {
        let mut all = self.all.borrow_mut();
        let mut from: HashMap<IpAddr, usize> = HashMap::new();
        for one in all.values().filter(|one| !one.is_proxy) {
            *from.entry(one.address).or_default() += 1;
        }
        let candidates = all.iter().filter(|(_, one)| one.makes_room() && may(one));
        let first = candidates.min_by_key(|(_, one)| {
            let crowd = if one.is_proxy { 0 } else { from[&one.address] };
            (std::cmp::Reverse(crowd), one.is_unread, one.busy.is_some(), one.since)
        });
        let Some(id) = first.map(|(id, _)| *id) else { return false };
        if let Some(task) = all.remove(&id).and_then(|one| one.task) {
            task.abort();
        }
        true
    }

    /// Lets requests that are under way end, and then ends all connections.
    pub(super) async fn end(&self) {
        let deadline = clock::now() + STOP_TIMEOUT;
        while clock::now() < deadline && self.all.borrow().values().any(Connection::is_answering) {
            sleep(Duration::from_millis(20)).await;
        }
        for (_, one) in self.all.borrow_mut().drain() {
            if let Some(task) = one.task {
                task.abort();
            }
        }
    }
}

/// Who has one address of IPv6 has a network of 64 bits.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// The place of one connection among all.
pub struct ConnectionSlot {
    id: u64,
    connections: Rc<Connections>,
    /// What the client sends is read: not while a request is under way, but for its body. Otherwise requests
    /// that follow it would be held in memory.
    reads: Cell<bool>,
    /// What is left of the body that is being read, where that is known; bytes.
    body: Cell<Option<u64>>,
    /// Whoever wants to read meanwhile.
    paused: RefCell<Option<Waker>>,
    /// Requests that have begun.
    begun: Cell<u64>,
}

/// Dropping it takes the connection out of the list.
pub(super) struct SlotGuard(Rc<ConnectionSlot>);

impl SlotGuard {
    pub(super) fn slot(&self) -> Rc<ConnectionSlot> {
        Rc::clone(&self.0)
    }

    /// Serves the connection by `work`, which ends where its place is needed.
    pub(super) fn serve(self, work: impl Future<Output = ()> + 'static) {
        let slot = self.slot();
        let task = tokio::task::spawn_local(async move {
            let _guard = self;
            work.await;
        });
        if let Some(entry) = slot.connections.all.borrow_mut().get_mut(&slot.id) {
            entry.task = Some(task.abort_handle());
        }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.0.connections.all.borrow_mut().remove(&self.0.id);
    }
}

/// A request is under way as long as this lives.
pub struct BusyGuard(Rc<ConnectionSlot>);

/// The body of a request is read as long as this lives.
pub struct BodyReadGuard(Rc<ConnectionSlot>);

/// As long as this lives, the request waits for something that costs nothing for one more: it is not counted,
/// and its connection makes room for others.
pub struct WaitGuard(Rc<ConnectionSlot>);

impl ConnectionSlot {
    /// A request begins; `None`: there are too many of them, from this address or in all.
    pub fn begin(self: &Rc<Self>, kind: Kind, client: IpAddr) -> Option<BusyGuard> {
        self.begun.set(self.begun.get() + 1);
        let client = network_of(client);
        let mut all = self.connections.all.borrow_mut();
        let places = &self.connections.places;
        let (mut of_client, mut of_api) = (0, 0);
        for busy in all.values().filter_map(|one| one.busy.as_ref()).filter(|busy| !busy.waits) {
            of_client += usize::from(busy.client == client);
            of_api += usize::from(busy.kind == Kind::Api);
        }
        // Some are left for what is not the API.
        let is_full = of_client >= places.per_client || kind == Kind::Api && of_api >= places.total / 4 * 3;
        if is_full && kind != Kind::Liveness {
            return None;
        }
        if let Some(entry) = all.get_mut(&self.id) {
            entry.busy = Some(UnderWay { kind, client, waits: false });
        }
        self.reads.set(false);
        Some(BusyGuard(Rc::clone(self)))
    }

    /// The body of the request is wanted: so many bytes, where that is known.
    pub fn read_body(self: &Rc<Self>, length: Option<u64>) -> BodyReadGuard {
        self.body.set(length);
        self.read();
        BodyReadGuard(Rc::clone(self))
    }

    /// The request begins to wait.
    pub fn wait(self: &Rc<Self>) -> WaitGuard {
        self.set_waits(true);
        WaitGuard(Rc::clone(self))
    }

    fn set_waits(&self, waits: bool) {
        let mut all = self.connections.all.borrow_mut();
        if let Some(busy) = all.get_mut(&self.id).and_then(|one| one.busy.as_mut()) {
            busy.waits = waits;
        }
    }

    /// Whether something of an answer waits to be taken.
    pub(super) fn set_unread(&self, is_unread: bool) {
        if let Some(entry) = self.connections.all.borrow_mut().get_mut(&self.id) {
            entry.is_unread = is_unread;
            entry.since = clock::now();
        }
    }

    /// How many bytes may be read now; 0: none, and `context` is woken when some may be.
    pub(super) fn may_read(&self, context: &mut std::task::Context<'_>, most: usize) -> usize {
        let left = self.body.get().map_or(most, |left| usize::try_from(left).unwrap_or(most));
        let may = if self.reads.get() { most.min(left) } else { 0 };
        if may == 0 {
            *self.paused.borrow_mut() = Some(context.waker().clone());
        }
        may
    }

    /// So many bytes were read.
    pub(super) fn has_read(&self, bytes: usize) {
        self.body.set(self.body.get().map(|left| left.saturating_sub(bytes as u64)));
    }

    /// How many requests have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.connections.all.borrow().get(&self.id).is_some_and(|one| one.busy.is_some())
    }

    fn read(&self) {
        self.reads.set(true);
        self.wake();
    }

    /// Reading goes on, if something waits for that.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.paused.take() {
            waker.wake();
        }
    }

    /// The connection is used with `key` of `org`; `false`: too many others are used with it, or with all
    /// keys of that organization.
    pub fn is_for(&self, key: KeyId, org: OrgId) -> bool {
        let mut all = self.connections.all.borrow_mut();
        let per_key = self.connections.places.per_client;
        let used = all.iter().filter(|(id, _)| **id != self.id).filter_map(|(_, one)| one.key);
        let (of_org, of_key) = used.fold((0, 0), |(of_org, of_key), (other, its_org)| {
            (of_org + usize::from(its_org == org), of_key + usize::from(other == key))
        });
        let fits = of_key < per_key && of_org < KEYS_PER_ORG * per_key;
        if let Some(entry) = all.get_mut(&self.id).filter(|_| fits) {
            entry.key = Some((key, org));
        }
        fits
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        if let Some(entry) = self.0.connections.all.borrow_mut().get_mut(&self.0.id) {
            entry.busy = None;
            entry.since = clock::now();
            if entry.is_proxy {
                // The next request on it is anybody's.
                entry.key = None;
            }
        }
        self.0.read();
    }
}

impl Drop for BodyReadGuard {
    fn drop(&mut self) {
        self.0.reads.set(false);
        self.0.body.set(None);
    }
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        self.0.set_waits(false);
    }
}

//! Which request does what. Handlers check the form, the engine the rest.

use std::sync::Arc;

use axum::body::Body as ResponseBody;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json as JsonResponse, Router};
use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::activity::Activity;
use super::extract::{Body, Json, Names, Options, check_kind, json};
use super::lanes::{self, Lanes};
use super::messages::{
    Applied, Event, EventKind, FdbFilter, FdbView, Flushed, Handle, NeighborFilter, NeighborView, Problem,
    StatsView, StatusView,
};
use super::messages::{PeerView, PortView, SegmentView, UnderlayView};
use super::server::stop_told;
use crate::metrics;
use crate::model::config::PortEntry;
use crate::model::types::optional_mac_text;
use crate::model::{
    Change, Cidr, Document, Mode, PeerSettings, PortSettings, SegmentSettings, StaticTarget, StormLimit,
    UnderlaySettings,
};

type Answer<T> = Result<JsonResponse<T>, Problem>;
/// A thing was made: 201.
type Created = Result<(StatusCode, JsonResponse<Applied>), Problem>;

/// What every handler can reach.
#[derive(Clone)]
struct App {
    engine: Handle,
    /// True once the server stops: endless answers end then.
    stop: watch::Receiver<bool>,
    lanes: Lanes,
}

/// The whole interface.
pub(super) fn all(engine: Handle, stop: watch::Receiver<bool>) -> Router {
    let lanes = Lanes::new();
    let listings = Router::new()
        .route("/v1/peers", get(peers))
        .route("/v1/fdb", get(fdb))
        .route("/v1/stats", get(stats))
        .route("/v1/config", get(config))
        .route("/metrics", get(metrics_text))
        .route_layer(from_fn_with_state(lanes.clone(), lanes::answers));
    Router::new()
        .route("/v1/underlays", get(underlays))
        .route(
            "/v1/underlays/{interface}",
            get(underlay).put(put_underlay).patch(patch_underlay).delete(delete_underlay),
        )
        .route("/v1/segments", get(segments))
        .route(
            "/v1/segments/{name}",
            get(segment).put(put_segment).patch(patch_segment).delete(delete_segment),
        )
        .route("/v1/ports", get(ports))
        .route("/v1/ports/{name}", get(port).put(put_port).patch(patch_port).delete(delete_port))
        .route("/v1/peers/{name}", get(peer).put(put_peer).patch(patch_peer).delete(delete_peer))
        .route("/v1/fdb/flush", post(flush))
        .route("/v1/fdb/{segment}/{mac}", get(fdb_entry).put(put_fdb).delete(delete_fdb))
        .route("/v1/neighbors", get(neighbors))
        .route("/v1/status", get(status))
        .route("/v1/apply", post(apply))
        .route("/v1/detach", post(detach))
        .route("/v1/events", get(events))
        .merge(listings)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(lanes.clone(), lanes::bodies))
        .with_state(App { engine, stop, lanes })
}

/// Only what a scraper may see over TCP.
pub(super) fn metrics_only(engine: Handle, stop: watch::Receiver<bool>) -> Router {
    let lanes = Lanes::new();
    Router::new()
        .route("/metrics", get(metrics_text))
        .route_layer(from_fn_with_state(lanes.clone(), lanes::answers))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(App { engine, stop, lanes })
}

async fn no_such_path(uri: Uri) -> Problem {
    Problem::not_found(format!("there is nothing at {}", uri.path()))
}

async fn no_such_method(method: axum::http::Method, uri: Uri) -> Problem {
    Problem::new(405, format!("{} does not take {method}", uri.path()))
}

async fn change(app: &App, change: Change) -> Answer<Applied> {
    app.engine.change(vec![change], false).await.map(JsonResponse)
}

async fn create(app: &App, new: Change) -> Created {
    change(app, new).await.map(|applied| (StatusCode::CREATED, applied))
}

/// The one with a name out of a list.
fn one<T>(noun: &str, name: &str, list: Vec<T>, is: impl Fn(&T) -> bool) -> Answer<T> {
    let found = list.into_iter().find(is).map(JsonResponse);
    found.ok_or_else(|| Problem::not_found(format!("there is no {noun} {name:?}")))
}

// Underlays.

/// Which of an underlay's endpoints; its first, if not said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnderlayOptions {
    local: Option<std::net::IpAddr>,
}

/// Which of an underlay's endpoints; all of them, if not said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteUnderlayOptions {
    local: Option<std::net::IpAddr>,
    #[serde(default)]
    force: bool,
}

/// Whether peers that are reached by what goes may be cut off.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForceOption {
    #[serde(default)]
    force: bool,
}

async fn underlays(State(app): State<App>) -> Answer<Vec<UnderlayView>> {
    app.engine.underlays().await.map(JsonResponse)
}

async fn underlay(
    State(app): State<App>,
    Names(name): Names<String>,
    Options(UnderlayOptions { local }): Options<UnderlayOptions>,
) -> Answer<UnderlayView> {
    let is = |view: &UnderlayView| view.interface == name && local.is_none_or(|local| view.local == local);
    one("underlay", &name, app.engine.underlays().await?, is)
}

async fn put_underlay(
    State(app): State<App>,
    Names(interface): Names<String>,
    Json(settings): Json<UnderlaySettings>,
) -> Created {
    create(&app, Change::AddUnderlay { interface, settings }).await
}

async fn patch_underlay(
    State(app): State<App>,
    Names(interface): Names<String>,
    Options(ForceOption { force }): Options<ForceOption>,
    Json(settings): Json<UnderlaySettings>,
) -> Answer<Applied> {
    change(&app, Change::SetUnderlay { interface, settings, force }).await
}

async fn delete_underlay(
    State(app): State<App>,
    Names(interface): Names<String>,
    Options(DeleteUnderlayOptions { local, force }): Options<DeleteUnderlayOptions>,
) -> Answer<Applied> {
    change(&app, Change::DelUnderlay { interface, local, force }).await
}

// Segments.

async fn segments(State(app): State<App>) -> Answer<Vec<SegmentView>> {
    app.engine.segments().await.map(JsonResponse)
}

async fn segment(State(app): State<App>, Names(name): Names<String>) -> Answer<SegmentView> {
    one("segment", &name, app.engine.segments().await?, |view| view.name == name)
}

async fn put_segment(
    State(app): State<App>,
    Names(name): Names<String>,
    Json(settings): Json<SegmentSettings>,
) -> Created {
    create(&app, Change::AddSegment { name, settings }).await
}

async fn patch_segment(
    State(app): State<App>,
    Names(name): Names<String>,
    Json(settings): Json<SegmentSettings>,
) -> Answer<Applied> {
    change(&app, Change::SetSegment { name, settings }).await
}

async fn delete_segment(State(app): State<App>, Names(name): Names<String>) -> Answer<Applied> {
    change(&app, Change::DelSegment { name }).await
}

// Ports.

/// What makes a port: the same keys as a `[[port]]` table has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortBody {
    segment: String,
    vlan: Option<u16>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    create: bool,
    #[serde(default)]
    addresses: Vec<Cidr>,
    #[serde(default, with = "optional_mac_text")]
    mac: Option<MacAddr>,
    #[serde(default)]
    storm_limit: StormLimit,
}

async fn ports(State(app): State<App>) -> Answer<Vec<PortView>> {
    app.engine.ports().await.map(JsonResponse)
}

async fn port(State(app): State<App>, Names(name): Names<String>) -> Answer<PortView> {
    one("port", &name, app.engine.ports().await?, |view| view.name == name)
}

async fn put_port(
    State(app): State<App>,
    Names(interface): Names<String>,
    Json(body): Json<PortBody>,
) -> Created {
    let PortBody { segment, vlan, mode, create: made, addresses, mac, storm_limit } = body;
    let entry = PortEntry { interface, segment, vlan, mode, create: made, addresses, mac, storm_limit };
    entry.check().map_err(|error| Problem::invalid(error.to_string()))?;
    create(&app, entry.into()).await
}

async fn patch_port(
    State(app): State<App>,
    Names(name): Names<String>,
    Json(settings): Json<PortSettings>,
) -> Answer<Applied> {
    change(&app, Change::SetPort { name, settings }).await
}

async fn delete_port(State(app): State<App>, Names(name): Names<String>) -> Answer<Applied> {
    change(&app, Change::DelPort { name }).await
}

// Peers.

async fn peers(State(app): State<App>) -> Answer<Vec<PeerView>> {
    app.engine.peers().await.map(JsonResponse)
}

async fn peer(State(app): State<App>, Names(name): Names<String>) -> Answer<PeerView> {
    one("peer", &name, app.engine.peer(&name).await?, |view| view.name == name)
}

async fn put_peer(
    State(app): State<App>,
    Names(name): Names<String>,
    Json(settings): Json<PeerSettings>,
) -> Created {
    create(&app, Change::AddPeer { name, settings }).await
}

async fn patch_peer(
    State(app): State<App>,
    Names(name): Names<String>,
    Json(settings): Json<PeerSettings>,
) -> Answer<Applied> {
    change(&app, Change::SetPeer { name, settings }).await
}

async fn delete_peer(State(app): State<App>, Names(name): Names<String>) -> Answer<Applied> {
    change(&app, Change::DelPeer { name }).await
}

// FDB.

/// A static entry's target: one of the two.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FdbBody {
    peer: Option<String>,
    port: Option<String>,
}

fn mac(text: &str) -> Result<MacAddr, Problem> {
    text.parse().map_err(|error| Problem::invalid(format!("{text:?}: {error}")))
}

async fn fdb(State(app): State<App>, Options(filter): Options<FdbFilter>) -> Answer<Vec<FdbView>> {
    app.engine.fdb(filter).await.map(JsonResponse)
}

async fn neighbors(
    State(app): State<App>,
    Options(filter): Options<NeighborFilter>,
) -> Answer<Vec<NeighborView>> {
    app.engine.neighbors(filter).await.map(JsonResponse)
}

async fn fdb_entry(
    State(app): State<App>,
    Names((segment, text)): Names<(String, String)>,
) -> Answer<FdbView> {
    let mac = mac(&text)?;
    one("entry", &text, app.engine.fdb_entry(segment, mac).await?, |view| view.mac == mac)
}

async fn put_fdb(
    State(app): State<App>,
    Names((segment, text)): Names<(String, String)>,
    Json(body): Json<FdbBody>,
) -> Created {
    let target = match (body.peer, body.port) {
        (Some(peer), None) => StaticTarget::Peer(peer),
        (None, Some(port)) => StaticTarget::Port(port),
        _ => return Err(Problem::invalid("give either a peer or a port")),
    };
    create(&app, Change::AddFdb { segment, mac: mac(&text)?, target }).await
}

async fn delete_fdb(
    State(app): State<App>,
    Names((segment, text)): Names<(String, String)>,
) -> Answer<Applied> {
    change(&app, Change::DelFdb { segment, mac: mac(&text)? }).await
}

async fn flush(State(app): State<App>, Json(filter): Json<FdbFilter>) -> Answer<Flushed> {
    app.engine.flush(filter).await.map(JsonResponse)
}

// The instance.

async fn status(State(app): State<App>) -> Answer<StatusView> {
    app.engine.status().await.map(JsonResponse)
}

async fn stats(State(app): State<App>) -> Answer<StatsView> {
    app.engine.stats().await.map(JsonResponse)
}

async fn config(State(app): State<App>) -> Answer<Document> {
    app.engine.config().await.map(JsonResponse)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplyOptions {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    allow_empty: bool,
}

/// What to do about a document with nothing in it.
const REMOVE_ALL: &str = "to remove everything, say so (mgre apply --allow-empty, or ?allow_empty=true)";

/// Takes a document as JSON, or as TOML if the request says so.
async fn apply(
    State(app): State<App>,
    Options(ApplyOptions { dry_run, allow_empty }): Options<ApplyOptions>,
    headers: HeaderMap,
    Body(bytes): Body,
) -> Answer<Applied> {
    // A body that was lost on the way would remove everything, as would a file that was not written whole.
    if bytes.trim_ascii().is_empty() && !allow_empty {
        return Err(Problem::bad_request(format!("there is no document in the body: {REMOVE_ALL}")));
    }
    let document = if check_kind(&headers, true)? {
        let text = std::str::from_utf8(&bytes).map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
        Document::from_toml(text).map_err(|error| Problem::bad_request(error.to_string()))?
    } else {
        json::<Document>(&bytes)?
    };
    document.check().map_err(|error| Problem::invalid(error.to_string()))?;
    // Where there is nothing, nothing is removed.
    let refused = document.is_empty() && !allow_empty && !app.engine.config().await?.is_empty();
    let why = || format!("the document is empty: {REMOVE_ALL}");
    if refused && !dry_run {
        return Err(Problem::conflict(why()));
    }
    let mut applied = app.engine.change(document.into_changes(), dry_run).await?;
    applied.warnings.extend(refused.then(why));
    Ok(JsonResponse(applied))
}

async fn detach(State(app): State<App>) -> Result<StatusCode, Problem> {
    app.engine.detach().await.map(|()| StatusCode::NO_CONTENT)
}

async fn metrics_text(State(app): State<App>) -> Result<Response, Problem> {
    let text = app.engine.metrics().await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// One JSON object a line, until the client leaves or the server stops.
async fn events(
    State(app): State<App>,
    client: Option<Extension<Arc<Activity>>>,
) -> Result<Response, Problem> {
    let turn = app.lanes.stream()?;
    if let Some(Extension(client)) = client {
        client.stay();
    }
    let lines = futures::stream::unfold(
        (app.engine.subscribe(), app.stop, turn),
        |(mut events, mut stop, turn)| async {
            let event = tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => event,
                    Err(RecvError::Lagged(count)) => Event::now(EventKind::Lost { count }),
                    Err(RecvError::Closed) => return None,
                },
                () = stop_told(&mut stop) => return None,
            };
            Some((line(&event), (events, stop, turn)))
        },
    );
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], ResponseBody::from_stream(lines)).into_response())
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

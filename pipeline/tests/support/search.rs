//! A search server of ours: `_bulk` with `create`, as Elasticsearch does it, slow and unreliable by a seed. It can
//! lie: say that an item is stored, and not store it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::message::{Dice, seq_of};

/// How it treats its client. Zero is never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manners {
    /// One in how many requests is carried out, and then answered with 503, as if its answer had been lost.
    pub(crate) lost_answer_one_in: u64,
    /// One in how many items is to be sent again.
    pub(crate) busy_item_one_in: u64,
    /// One in how many items is told to be stored and is not.
    pub(crate) lie_one_in: u64,
    /// How long a request takes at most, in milliseconds, before and after it is carried out.
    pub(crate) delay_max: u64,
}

struct Index {
    dice: Dice,
    manners: Manners,
    /// Nothing is answered until then.
    down_until: Option<Instant>,
    documents: BTreeMap<(String, String), String>,
    lied: BTreeSet<u64>,
    n_conflicts: u64,
}

/// The server. It ends when dropped.
pub(crate) struct Search {
    pub(crate) address: SocketAddr,
    index: Arc<Mutex<Index>>,
    _server: JoinSet<()>,
}

impl Search {
    pub(crate) async fn start(seed: u64, manners: Manners) -> Self {
        let index = Index {
            dice: Dice::new(seed),
            manners,
            down_until: None,
            documents: BTreeMap::new(),
            lied: BTreeSet::new(),
            n_conflicts: 0,
        };
        let index = Arc::new(Mutex::new(index));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&index));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, index, _server: server }
    }

    /// Refuses everything for a while.
    pub(crate) fn go_down(&self, how_long: Duration) {
        self.index.lock().unwrap().down_until = Some(Instant::now() + how_long);
    }

    /// Does from now on all that it is asked for. What it said that was not true stays untrue.
    pub(crate) fn behave(&self) {
        let mut index = self.index.lock().unwrap();
        index.manners = Manners::default();
        index.down_until = None;
    }

    /// Every stored document.
    pub(crate) fn documents(&self) -> Vec<String> {
        self.index.lock().unwrap().documents.values().cloned().collect()
    }

    /// How many documents are stored.
    #[allow(dead_code, reason = "of interest to some tests only")]
    pub(crate) fn n_documents(&self) -> usize {
        self.index.lock().unwrap().documents.len()
    }

    pub(crate) fn holds(&self, seq: u64) -> bool {
        self.index.lock().unwrap().documents.values().any(|document| seq_of(document) == Some(seq))
    }

    /// The messages that it said to have stored and has not.
    pub(crate) fn lied(&self) -> BTreeSet<u64> {
        self.index.lock().unwrap().lied.clone()
    }

    /// How many items came although they were stored.
    pub(crate) fn n_conflicts(&self) -> u64 {
        self.index.lock().unwrap().n_conflicts
    }
}

async fn answer(State(index): State<Arc<Mutex<Index>>>, request: Request) -> Response {
    let unavailable = || (StatusCode::SERVICE_UNAVAILABLE, "try again").into_response();
    let (head, body) = request.into_parts();
    // The client may be killed while it sends; then there is nothing to carry out.
    let Ok(body) = to_bytes(body, usize::MAX).await else { return unavailable() };
    let (before, after) = {
        let mut index = index.lock().unwrap();
        if index.down_until.is_some_and(|until| Instant::now() < until) {
            return unavailable();
        }
        let most = index.manners.delay_max + 1;
        (index.dice.range(0, most), index.dice.range(0, most))
    };
    if head.uri.path() != "/_bulk" {
        let is_template = head.uri.path().starts_with("/_index_template");
        return match head.method {
            Method::GET if is_template => (StatusCode::NOT_FOUND, "{}").into_response(),
            Method::PUT => json!({"acknowledged": true}).to_string().into_response(),
            _ => json!({"version": {"number": "8.17.0"}}).to_string().into_response(),
        };
    }
    sleep(Duration::from_millis(before)).await;
    let (items, lost) = {
        let mut index = index.lock().unwrap();
        let items = index.bulk(std::str::from_utf8(&body).unwrap());
        let one_in = index.manners.lost_answer_one_in;
        (items, one_in > 0 && index.dice.one_in(one_in))
    };
    sleep(Duration::from_millis(after)).await;
    if lost {
        return unavailable();
    }
    let errors = items.iter().any(|item| item["create"]["status"] != 201);
    json!({"errors": errors, "items": items}).to_string().into_response()
}

impl Index {
    fn bulk(&mut self, body: &str) -> Vec<Value> {
        let mut lines = body.lines();
        let mut items = Vec::new();
        while let (Some(action), Some(document)) = (lines.next(), lines.next()) {
            let action: Value = serde_json::from_str(action).unwrap();
            let name =
                |key| action["create"][key].as_str().expect("an index and an id of the sink's").to_owned();
            items.push(json!({"create": self.create((name("_index"), name("_id")), document)}));
        }
        items
    }

    fn create(&mut self, id: (String, String), document: &str) -> Value {
        let manners = self.manners;
        if self.documents.contains_key(&id) {
            self.n_conflicts += 1;
            let reason = "document already exists";
            return json!({"status": 409, "error": {"type": "version_conflict_engine_exception", "reason": reason}});
        }
        if manners.busy_item_one_in > 0 && self.dice.one_in(manners.busy_item_one_in) {
            return json!({"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "full"}});
        }
        let seq = seq_of(document);
        if manners.lie_one_in > 0 && self.dice.one_in(manners.lie_one_in) {
            self.lied.extend(seq);
            return json!({"status": 201});
        }
        self.documents.insert(id, document.to_owned());
        if let Some(seq) = seq {
            // Told again after a kill, and this time stored.
            self.lied.remove(&seq);
        }
        json!({"status": 201})
    }
}

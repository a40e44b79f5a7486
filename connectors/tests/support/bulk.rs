//! A search server of ours: it keeps documents as the real ones do, misbehaves by a seed, and keeps the books about
//! what it said, which a sink's metrics must match.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::server::{Reaction, Request, Server};

/// What the client was last told about an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Its fate is sealed.
    Final,
    /// Try smaller.
    Smaller,
    /// Nothing that helps, or to try again.
    TryAgain,
}

/// What it did and said.
#[derive(Default)]
pub(crate) struct Books {
    /// Documents by index and id.
    pub(crate) stored: BTreeMap<(String, String), Value>,
    /// Items whose fate the client was told, and that came again.
    pub(crate) repeated: Vec<String>,
    /// Ids that the client was told are refused.
    pub(crate) refused: BTreeSet<String>,
    /// Operations other than `create`.
    pub(crate) strange: Vec<String>,
    pub(crate) n_created: u64,
    pub(crate) n_conflicts: u64,
    pub(crate) n_redirected: u64,
    pub(crate) n_retried: u64,
    pub(crate) n_bytes: u64,
    pub(crate) n_requests: u64,
    /// Reactions to whole requests, by the name of the sink's error.
    pub(crate) errors: BTreeMap<&'static str, u64>,
    told: HashMap<String, Told>,
    n_bad_in_a_row: HashMap<String, u32>,
    n_silences: u32,
}

/// How it misbehaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// One in how many requests fails as a whole; zero for none.
    pub(crate) request_one_in: u32,
    /// One in how many items is to be sent again; zero for none.
    pub(crate) item_one_in: u32,
    /// More items than this in a request are too large.
    pub(crate) items_max: usize,
}

pub(crate) struct BulkServer {
    pub(crate) server: Server,
    books: Arc<Mutex<Books>>,
}

impl BulkServer {
    pub(crate) async fn start(seed: u64, faults: Faults) -> Self {
        let books = Arc::new(Mutex::new(Books::default()));
        let kept = Arc::clone(&books);
        let mut rng = SmallRng::seed_from_u64(seed);
        let server = Server::start(move |request| {
            if !request.target.starts_with("/_bulk") {
                return Reaction::json(200, &json!({}));
            }
            bulk(&mut kept.lock().unwrap(), &mut rng, faults, request)
        });
        Self { server: server.await, books }
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }
}

/// The items of a bulk request: operation, index, id, document.
pub(crate) fn items(body: &[u8]) -> Vec<(String, String, String, Value)> {
    let lines: Vec<&[u8]> = body.strip_suffix(b"\n").unwrap().split(|b| *b == b'\n').collect();
    let items = lines.chunks(2).map(|pair| {
        let action: BTreeMap<String, Value> = serde_json::from_slice(pair[0]).unwrap();
        assert_eq!(action.len(), 1, "one operation a line");
        let (op, action) = action.into_iter().next().unwrap();
        let text = |key: &str| action[key].as_str().unwrap_or_default().to_owned();
        (op, text("_index"), text("_id"), serde_json::from_slice(pair[1]).unwrap())
    });
    items.collect()
}

fn bulk(books: &mut Books, rng: &mut SmallRng, faults: Faults, request: &Request) -> Reaction {
    let items = items(&request.body);
    books.n_requests += 1;
    books.n_bytes += request.n_bytes as u64;
    for (op, _, id, _) in &items {
        match books.told.get(id) {
            Some(Told::Final) => books.repeated.push(id.clone()),
            Some(Told::TryAgain) => books.n_retried += 1,
            Some(Told::Smaller) | None => {}
        }
        if op != "create" {
            books.strange.push(op.clone());
        }
    }
    let tell_all = |books: &mut Books, told| {
        books.told.extend(items.iter().map(|(_, _, id, _)| (id.clone(), told)));
    };
    if items.len() > faults.items_max || items.len() == 1 && items[0].3["fate"] == "413" {
        *books.errors.entry("too_large").or_default() += 1;
        if items.len() == 1 {
            books.refused.insert(items[0].2.clone());
        }
        tell_all(books, if items.len() == 1 { Told::Final } else { Told::Smaller });
        return Reaction::status(413);
    }
    if items.len() > 1 && items.iter().any(|item| item.3["fate"] == "413") {
        *books.errors.entry("too_large").or_default() += 1;
        tell_all(books, Told::Smaller);
        return Reaction::status(413);
    }
    let n_bad = books.n_bad_in_a_row.entry(items[0].2.clone()).or_default();
    let bad = faults.request_one_in > 0 && *n_bad < 3 && rng.random_ratio(1, faults.request_one_in);
    *n_bad = if bad { *n_bad + 1 } else { 0 };
    if bad {
        tell_all(books, Told::TryAgain);
        return misbehave(books, rng, faults, &items);
    }
    let answers = apply(books, rng, faults, &items, true);
    answer(&answers)
}

fn answer(answers: &[Value]) -> Reaction {
    let failed = answers.iter().any(|answer| answer["create"]["error"].is_object());
    Reaction::json(200, &json!({ "errors": failed, "items": answers }))
}

/// Fails a request, having stored its documents or not.
fn misbehave(
    books: &mut Books,
    rng: &mut SmallRng,
    faults: Faults,
    items: &[(String, String, String, Value)],
) -> Reaction {
    let mut answers =
        if rng.random() { apply(books, rng, faults, items, false) } else { vec![json!({}); items.len()] };
    let (kind, reaction) = match rng.random_range(0..8) {
        0 => ("busy", Reaction::status(429)),
        1 => ("busy", Reaction::status(503)),
        2 => ("server_error", Reaction::status(502)),
        // Each costs the client's whole patience.
        3 if books.n_silences < 2 => {
            books.n_silences += 1;
            ("timeout", Reaction::Silence)
        }
        3 | 4 => ("broken", Reaction::Close),
        5 => {
            let Reaction::Answer { body, .. } = answer(&answers) else { unreachable!("an answer") };
            ("broken", Reaction::Cut { body })
        }
        6 => {
            answers.pop();
            ("unclear_answer", answer(&answers))
        }
        _ => {
            // Cut where a proxy that buffers would cut, so that the length is right.
            let Reaction::Answer { mut body, .. } = answer(&answers) else { unreachable!("an answer") };
            body.truncate(body.len() - rng.random_range(1..body.len()));
            ("unclear_answer", Reaction::Answer { status: 200, headers: Vec::new(), body })
        }
    };
    *books.errors.entry(kind).or_default() += 1;
    reaction
}

/// Stores documents; keeps books about the answers only if they will be heard.
fn apply(
    books: &mut Books,
    rng: &mut SmallRng,
    faults: Faults,
    items: &[(String, String, String, Value)],
    heard: bool,
) -> Vec<Value> {
    let mut answers = Vec::new();
    for (_, index, id, document) in items {
        let again = faults.item_one_in > 0 && rng.random_ratio(1, faults.item_one_in);
        let key = (index.clone(), id.clone());
        let fate = document["fate"].as_str().unwrap_or_default();
        let (status, kind) = match fate {
            "400" => (400, "document_parsing_exception"),
            "404" => (404, "index_not_found_exception"),
            _ if books.stored.contains_key(&key) => (409, "version_conflict_engine_exception"),
            _ if again && rng.random() => (429, "es_rejected_execution_exception"),
            _ if again => (503, "unavailable_shards_exception"),
            _ => (201, ""),
        };
        let mut outcome = json!({ "status": status });
        if status == 201 {
            books.stored.insert(key, document.clone());
            if fate == "redirected" {
                outcome["failure_store"] = json!("used");
            }
        } else {
            outcome["error"] = json!({ "type": kind, "reason": format!("because of \"status\":{status}\n") });
        }
        answers.push(json!({ "create": outcome }));
        if heard {
            let told = if matches!(status, 429 | 503) { Told::TryAgain } else { Told::Final };
            books.told.insert(id.clone(), told);
            match status {
                201 => books.n_created += 1,
                409 => books.n_conflicts += 1,
                400 | 404 => {
                    books.refused.insert(id.clone());
                }
                _ => {}
            }
            if status == 201 && fate == "redirected" {
                books.n_redirected += 1;
            }
        }
    }
    answers
}

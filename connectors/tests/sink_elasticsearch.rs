//! The `elasticsearch` sink against a server that misbehaves in every way that the table of its module names.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, StringViewArray, TimestampMicrosecondArray};
use logdrive_connectors::ConnectorError;
use logdrive_schemas::Batch;
use serde_json::json;
use support::bulk::{BulkServer, Faults, items};
use support::server::{Reaction, Request, Server};
use support::{RECEIVED_AT, batch, count, deliver, deliver_at_last, errors, sink, texts};

const NO_FAULTS: Faults = Faults { request_one_in: 0, item_one_in: 0, items_max: usize::MAX };

fn yaml(urls: &[String], more: &str) -> String {
    format!(
        "endpoint: {urls:?}\nindex: \"logs-%Y.%m.%d\"\nrequest_timeout: 250ms\n\
         retry: {{ first: 1ms, max: 8ms }}\n{more}"
    )
}

fn documents(fates: &[&str], n_rows: usize) -> Vec<String> {
    (0..n_rows)
        .map(|n| match fates.get(n % 40) {
            Some(fate) if !fate.is_empty() => json!({ "n": n, "fate": fate }).to_string(),
            _ => format!("{{\"n\":{n}, \"text\":\"line\\nbreak\"}}"),
        })
        .collect()
}

fn batches(documents: &[String]) -> Vec<Batch> {
    documents
        .chunks(37)
        .enumerate()
        .map(|(n, chunk)| batch(n as u64 % 3, n as u64 * 37, chunk, &[]))
        .collect()
}

fn ids(batches: &[Batch]) -> BTreeSet<String> {
    batches.iter().flat_map(|b| (0..b.num_rows()).map(|idx| b.id(idx))).collect()
}

fn assert_in(value: u64, books: u64, what: &str, seed: u64) {
    assert_eq!(value, books, "{what}, seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_server_does_every_row_is_delivered_or_rejected_once() {
    let mut seeds = tokio::task::JoinSet::new();
    for seed in 0..12 {
        seeds.spawn(misbehaviour(seed));
    }
    seeds.join_all().await;
}

async fn misbehaviour(seed: u64) {
    let fates = ["400", "", "404", "redirected", "", "413"];
    let faults = Faults { request_one_in: 4, item_one_in: 5, items_max: 60 };
    let server = BulkServer::start(seed, faults).await;
    let more = "batch: { max_bytes: 3KB }\nconcurrency: 3\ntemplate: { enabled: false }";
    // On a busy machine an answer can take long; a timeout that the server knows nothing of would spoil its books.
    let config = yaml(&[server.server.url()], more).replace("250ms", "3s");
    let (mut out, cx) = sink("elasticsearch", &config);
    let sent = batches(&documents(&fates, 400));
    out.connect().await.unwrap();
    let rejects = deliver(&mut *out, &sent).await.unwrap();

    let books = server.books();
    let stored: BTreeSet<String> = books.stored.keys().map(|(_, id)| id.clone()).collect();
    let positions = texts(&rejects, "position");
    let rejected: BTreeSet<String> = positions.iter().cloned().collect();
    let refused: BTreeSet<String> = sent
        .iter()
        .flat_map(|b| (0..b.num_rows()).map(move |idx| (b, idx)))
        .filter(|(b, idx)| books.refused.contains(&b.id(*idx)))
        .map(|(b, idx)| format!("{}:{}", b.origin().partition, b.offsets().value(idx)))
        .collect();
    assert_eq!(rejected, refused, "seed {seed}");
    assert_eq!(positions.len(), refused.len(), "each once, seed {seed}");
    let all: BTreeSet<String> = stored.union(&books.refused).cloned().collect();
    assert_eq!(all, ids(&sent), "seed {seed}");
    assert!(stored.is_disjoint(&books.refused), "seed {seed}");
    assert_eq!(books.repeated, Vec::<String>::new(), "seed {seed}");
    assert_eq!(books.strange, Vec::<String>::new(), "seed {seed}");
    assert!(rejects.iter().all(|b| !b.origin().ordered && &*b.origin().source == "out"));
    assert_eq!(ids(&rejects).len(), positions.len(), "rejects have identities of their own, seed {seed}");

    assert_in(count(&cx.metrics.sink_rows), books.n_created, "rows", seed);
    assert_in(count(&cx.metrics.sink_duplicates), books.n_conflicts, "duplicates", seed);
    assert_in(count(&cx.metrics.sink_redirected_rows), books.n_redirected, "redirected", seed);
    assert_in(count(&cx.metrics.sink_retried_rows), books.n_retried, "retried", seed);
    assert_in(count(&cx.metrics.sink_bytes), books.n_bytes, "bytes", seed);
    for kind in ["too_large", "busy", "server_error", "timeout", "broken", "unclear_answer"] {
        let told = books.errors.get(kind).copied().unwrap_or_default();
        assert_in(errors(&cx, kind), told, kind, seed);
    }
    let n_all = count(&cx.metrics.sink_rows) + count(&cx.metrics.sink_duplicates) + positions.len() as u64;
    assert_eq!(n_all, 400, "seed {seed}");
    assert!(books.n_retried > 0 && books.n_conflicts > 0, "the faults were at work, seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_stores_nothing_twice() {
    let server = BulkServer::start(1, NO_FAULTS).await;
    let sent = batches(&documents(&[], 300));
    for replay in 0..3 {
        // A process that starts anew knows nothing of what was sent.
        let config = yaml(&[server.server.url()], "template: { enabled: false }");
        let (mut out, cx) = sink("elasticsearch", &config);
        let (rejects, n_errors) = deliver_at_last(&mut *out, &sent).await;
        assert_eq!((rejects.len(), n_errors), (0, 0));
        assert_eq!(server.books().stored.len(), 300);
        let expect = if replay == 0 { (300, 0) } else { (0, 300) };
        assert_eq!((count(&cx.metrics.sink_rows), count(&cx.metrics.sink_duplicates)), expect);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_bounded() {
    let server = BulkServer::start(1, NO_FAULTS).await;
    let more = "batch: { max_bytes: 300 }\nconcurrency: 3\ntemplate: { enabled: false }";
    let (mut out, _) = sink("elasticsearch", &yaml(&[server.server.url()], more));
    deliver_at_last(&mut *out, &batches(&documents(&[], 300))).await;
    let at_once = server.server.at_once_max.load(std::sync::atomic::Ordering::SeqCst);
    assert!(at_once <= 3, "{at_once} at once");
    assert!(50 < server.books().n_requests);
}

/// A server that reacts as told, in turn, and properly after that. Returns what it was asked.
async fn scripted(script: Vec<Reaction>) -> (Server, Arc<Mutex<Vec<Request>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (kept, mut script) = (Arc::clone(&asked), script.into_iter());
    let server = Server::start(move |request| {
        if !request.target.starts_with("/_bulk") {
            return Reaction::json(200, &json!({}));
        }
        kept.lock().unwrap().push(request.clone());
        let done = vec![json!({ "create": { "status": 201 } }); items(&request.body).len()];
        let done = Reaction::json(200, &json!({ "errors": false, "items": done }));
        script.next().unwrap_or(done)
    });
    (server.await, asked)
}

#[tokio::test]
async fn a_refusing_endpoint_pauses_the_sink_and_keeps_its_rows() {
    for status in [401, 403, 404, 405, 302] {
        let script = (0..3).map(|_| Reaction::status(status)).collect();
        let (server, asked) = scripted(script).await;
        let (mut out, cx) = sink("elasticsearch", &yaml(&[server.url()], "template: { enabled: false }"));
        let sent = batches(&documents(&[], 10));
        out.connect().await.unwrap();
        let error = deliver(&mut *out, &sent).await.unwrap_err();
        assert!(matches!(error, ConnectorError::Disconnected { .. }), "{status}: {error:?}");
        let (rejects, n_errors) = deliver_at_last(&mut *out, &sent).await;
        assert_eq!((rejects.len(), n_errors), (0, 2), "{status}");
        assert_eq!(items(&asked.lock().unwrap().last().unwrap().body).len(), 10);
        assert_eq!((errors(&cx, "refused"), count(&cx.metrics.sink_rows)), (3, 10));
    }
}

#[tokio::test]
async fn answers_that_never_tell_pause_the_sink() {
    let (server, asked) = scripted(vec![Reaction::status(503); 5]).await;
    let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], "template: { enabled: false }"));
    let sent = batches(&documents(&[], 10));
    out.connect().await.unwrap();
    let error = deliver(&mut *out, &sent).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Busy { after: Some(_), .. }), "{error:?}");
    assert_eq!(deliver_at_last(&mut *out, &sent).await.1, 0);
    assert_eq!(asked.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn a_request_that_is_wrong_as_a_whole_costs_only_the_row_at_fault() {
    let server = Server::start(|request| {
        let sent = match request.target.starts_with("/_bulk") {
            true => items(&request.body),
            false => return Reaction::json(200, &json!({})),
        };
        if sent.iter().any(|item| item.3["n"] == 7) {
            let error = json!({ "type": "illegal_argument_exception", "reason": "no" });
            return Reaction::json(400, &json!({ "error": error, "status": 400 }));
        }
        Reaction::json(
            200,
            &json!({ "errors": false, "items": vec![json!({ "create": { "status": 201 } }); sent.len()] }),
        )
    });
    let server = server.await;
    let (mut out, cx) = sink("elasticsearch", &yaml(&[server.url()], "template: { enabled: false }"));
    let (rejects, _) = deliver_at_last(&mut *out, &batches(&documents(&[], 30))).await;
    assert_eq!(texts(&rejects, "reason"), ["es_400: illegal_argument_exception: no"]);
    assert_eq!(count(&cx.metrics.sink_rows), 29);

    // The same status from something that is no search server says nothing about the rows.
    let (server, _) = scripted(vec![Reaction::status(400)]).await;
    let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], "template: { enabled: false }"));
    let (rejects, n_errors) = deliver_at_last(&mut *out, &batches(&documents(&[], 30))).await;
    assert_eq!((rejects.len(), n_errors), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_take_turns_and_a_dead_one_is_asked_again() {
    let alive = BulkServer::start(1, NO_FAULTS).await;
    let dead = BulkServer::start(2, NO_FAULTS).await;
    let address = dead.server.address;
    drop(dead);
    let urls = [format!("http://{address}"), alive.server.url()];
    let more = "batch: { max_bytes: 300 }\ntemplate: { enabled: false }";
    let (mut out, cx) = sink("elasticsearch", &yaml(&urls, more));
    let sent = batches(&documents(&[], 100));
    assert_eq!(deliver_at_last(&mut *out, &sent).await.1, 0);
    assert_eq!(alive.books().stored.len(), 100);

    let n_asked = Arc::new(Mutex::new((0, 0)));
    let kept = Arc::clone(&n_asked);
    let _back = Server::start_at(address, move |request| {
        if request.target.starts_with("/_bulk") {
            kept.lock().unwrap().1 += 1;
            let done = vec![json!({ "create": { "status": 201 } }); items(&request.body).len()];
            return Reaction::json(200, &json!({ "errors": false, "items": done }));
        }
        kept.lock().unwrap().0 += 1;
        Reaction::json(200, &json!({}))
    })
    .await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while n_asked.lock().unwrap().1 == 0 {
        assert!(Instant::now() < deadline, "the endpoint never gets work again");
        deliver(&mut *out, &sent).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(n_asked.lock().unwrap().0, 1, "asked once for a sign of life");
    assert_eq!(errors(&cx, "unreachable"), 0, "the probe at connecting saw that it was dead");
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once() {
    let (server, _) = scripted(Vec::new()).await;
    let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], "template: { enabled: false }"));
    out.connect().await.unwrap();
    drop(server);
    let error = deliver(&mut *out, &batches(&documents(&[], 10))).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Disconnected { .. } | ConnectorError::Busy { .. }), "{error:?}");
    assert!(matches!(out.connect().await.unwrap_err(), ConnectorError::Disconnected { .. }));
}

#[tokio::test]
async fn what_the_configuration_says_is_sent() {
    let (server, asked) = scripted(Vec::new()).await;
    let more = "index_age_max: 30d\npipeline: geo\nrouting: tenant\nauth: { basic: { user: u, password: p } }\n\
                template: { enabled: false }";
    let text = yaml(&[server.url()], more).replace("logs-%Y.%m.%d", "logs-{tenant}-%Y.%m.%d");
    let (mut out, _) = sink("elasticsearch", &text);
    let day = 24 * 3_600_000_000;
    let times = [RECEIVED_AT - day, RECEIVED_AT - 31 * day, RECEIVED_AT + 2 * day, i64::MAX, i64::MIN];
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC"));
    let tenants = [Some("Shop \"A\"/../*"), Some(".kibana"), Some(""), None, Some("x,y")];
    let tenants: ArrayRef = Arc::new(StringViewArray::from(tenants.to_vec()));
    let rows = batch(1, 5, &documents(&[], 5), &[("@timestamp", times), ("tenant", tenants)]);
    deliver_at_last(&mut *out, &[rows]).await;

    let request = asked.lock().unwrap()[0].clone();
    assert_eq!(request.headers["authorization"], "Basic dTpw");
    assert_eq!(request.headers["content-type"], "application/x-ndjson");
    assert!(request.target.contains("pipeline=geo") && request.target.contains("filter_path="));
    let indices: Vec<_> = items(&request.body).into_iter().map(|(op, index, ..)| (op, index)).collect();
    let expect = [
        "logs-shop__a__.._-_-2026.11.20".replace("_-_-", "__-"),
        "logs-.kibana-2026.11.21".into(),
        "logs-none-2026.11.21".into(),
        "logs-none-2026.11.21".into(),
        "logs-x_y-2026.11.21".into(),
    ];
    assert_eq!(indices, expect.map(|index| ("create".to_owned(), index)));
    let lines: Vec<&str> = std::str::from_utf8(&request.body).unwrap().lines().collect();
    assert!(lines[0].contains(r#""routing":"Shop \"A\"/../*""#), "{}", lines[0]);
    assert!(!lines[4].contains("routing"), "{}", lines[4]);
    assert!(lines[0].contains(r#""_id":"shop-0000000000000001-5""#), "{}", lines[0]);
}

#[tokio::test]
async fn without_ids_the_server_makes_them() {
    let (server, asked) = scripted(Vec::new()).await;
    let more = "id: none\nop: index\ngzip: true\ntemplate: { enabled: false }";
    let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], more));
    deliver_at_last(&mut *out, &batches(&documents(&[], 3))).await;
    let request = asked.lock().unwrap()[0].clone();
    assert!(items(&request.body).iter().all(|(op, _, id, _)| op == "index" && id.is_empty()));
    assert_eq!(request.headers["content-encoding"], "gzip");
}

#[tokio::test]
async fn templates_of_others_are_left_alone() {
    let ours = Arc::new(Mutex::new(None));
    for (found, more, installed) in [
        (None, "", true),
        (Some(json!({ "managed_by": "me" })), "", false),
        (Some(json!({ "managed_by": "me" })), "template: { overwrite: true }", true),
        (Some(json!({ "managed_by": "logdrive", "version": 0 })), "", true),
        (Some(json!("ours")), "", false),
    ] {
        let put = Arc::new(Mutex::new(BTreeMap::new()));
        let (kept, current) = (Arc::clone(&put), Arc::clone(&ours));
        let server = Server::start(move |request| match (request.method.as_str(), &found) {
            ("PUT", _) => {
                let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
                kept.lock().unwrap().insert(request.target.clone(), body);
                Reaction::json(200, &json!({ "acknowledged": true }))
            }
            (_, None) if request.target.starts_with("/_index_template") => Reaction::status(404),
            (_, Some(meta)) if request.target.starts_with("/_index_template") => {
                let same: Option<serde_json::Value> = current.lock().unwrap().clone();
                let template = if meta == "ours" { same.unwrap() } else { json!({ "_meta": meta }) };
                Reaction::json(200, &json!({ "index_templates": [{ "index_template": template }] }))
            }
            _ => Reaction::json(200, &json!({})),
        });
        let server = server.await;
        let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], more));
        out.connect().await.unwrap();
        let put = put.lock().unwrap();
        assert_eq!(!put.is_empty(), installed, "{more}");
        if let Some(body) = put.get("/_index_template/logdrive-logs") {
            assert_eq!(body["index_patterns"], json!(["logs-*"]));
            *ours.lock().unwrap() = Some(body.clone());
        }
    }
}

#[tokio::test]
async fn requests_are_signed_as_amazon_wants_it() {
    use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};

    let (server, asked) = scripted(Vec::new()).await;
    let more = "aws: { region: eu-central-1, access_key_id: AKID, secret_access_key: s3cret }\ngzip: true\n\
                pipeline: \"a b/c\"\ntemplate: { enabled: false }";
    let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], more));
    assert_eq!(deliver_at_last(&mut *out, &batches(&documents(&[], 10))).await.1, 0);
    let request = asked.lock().unwrap()[0].clone();
    let signed = &request.headers["authorization"];
    assert!(signed.contains("/eu-central-1/es/aws4_request"), "{signed}");

    // The server's part: the same from what arrived.
    let date = format!("{}+0000", request.headers["x-amz-date"].trim_end_matches('Z'));
    let date = jiff::fmt::strtime::parse("%Y%m%dT%H%M%S%z", &date).unwrap().to_timestamp().unwrap();
    let identity = aws_credential_types::Credentials::new("AKID", "s3cret", None, None, "test").into();
    let params = aws_sigv4::sign::v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-central-1")
        .name("es")
        .time(date.into())
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let names = ["content-encoding", "content-type", "host", "x-amz-content-sha256"];
    let headers = names.iter().map(|name| (*name, request.headers[*name].as_str()));
    let url = format!("http://{}{}", server.address, request.target);
    let body = SignableBody::Precomputed(request.headers["x-amz-content-sha256"].clone());
    let signable = SignableRequest::new(&request.method, url, headers, body).unwrap();
    let (_, signature) = sign(signable, &params).unwrap().into_parts();
    assert!(signed.ends_with(&format!("Signature={signature}")), "{signed} {signature}");
}

#[tokio::test]
async fn an_api_key_of_two_parts_is_encoded() {
    let (server, asked) = scripted(Vec::new()).await;
    let more = "auth: { api_key: \"id:key\" }\ntemplate: { enabled: false }";
    let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], more));
    deliver_at_last(&mut *out, &batches(&documents(&[], 1))).await;
    assert_eq!(asked.lock().unwrap()[0].headers["authorization"], "ApiKey aWQ6a2V5");
}

/// What the server is, what is there, and what becomes of policy and template.
#[tokio::test]
async fn policies_are_installed_in_the_words_of_the_server_and_done_without_where_it_has_none() {
    let elastic = json!({ "version": { "number": "8.15.0" }, "tagline": "You Know, for Search" });
    let open = json!({ "version": { "number": "2.19.0", "distribution": "opensearch" } });
    let (ilm, ism) = ("/_ilm/policy/logdrive-logs", "/_plugins/_ism/policies/logdrive-logs");
    let other = json!({ "_seq_no": 4, "_primary_term": 2, "policy": { "description": "mine" } });
    let earlier =
        json!({ "_seq_no": 4, "_primary_term": 2, "policy": { "description": "Made by Logdrive: x" } });
    let of_others = json!({ "logdrive-logs": { "policy": { "phases": {} } } });
    for (version, found, refused, installed, lifecycle) in [
        (&elastic, None, false, Some(ilm.to_owned()), "ilm"),
        (&elastic, Some(of_others), false, None, "ilm"),
        (&elastic, None, true, None, ""),
        (&open, None, false, Some(ism.to_owned()), "ism"),
        (&open, Some(other), false, None, "ism"),
        (&open, Some(earlier), false, Some(format!("{ism}?if_seq_no=4&if_primary_term=2")), "ism"),
        (&open, None, true, None, ""),
        (&json!({}), None, false, Some(ilm.to_owned()), "ilm"),
    ] {
        let put = Arc::new(Mutex::new(BTreeMap::new()));
        let (kept, version_too) = (Arc::clone(&put), version.clone());
        let server = Server::start(move |request| {
            let of_policy = request.target.starts_with(ilm) || request.target.starts_with(ism);
            match (request.method.as_str(), request.target.as_str()) {
                ("GET", "/") => Reaction::json(200, &version_too),
                ("GET", _) if of_policy => match &found {
                    Some(found) => Reaction::json(200, found),
                    None => Reaction::status(if refused { 400 } else { 404 }),
                },
                ("PUT", _) if of_policy && refused => {
                    Reaction::json(403, &json!({ "error": "current license is non-compliant" }))
                }
                ("PUT", _) => {
                    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
                    kept.lock().unwrap().insert(request.target.clone(), body);
                    Reaction::json(200, &json!({ "acknowledged": true }))
                }
                ("GET", target) if target.starts_with("/_index_template") => Reaction::status(404),
                _ => Reaction::json(200, &json!({})),
            }
        });
        let server = server.await;
        let (mut out, _) = sink("elasticsearch", &yaml(&[server.url()], "lifecycle: {}"));
        out.connect().await.unwrap();
        let put = put.lock().unwrap();
        let policies: Vec<_> =
            put.keys().filter(|path| !path.starts_with("/_index_template")).cloned().collect();
        assert_eq!(policies, Vec::from_iter(installed), "{version}");
        let template = &put["/_index_template/logdrive-logs"];
        let settings = &template["template"]["settings"]["index"];
        let named = settings["lifecycle"]["name"].as_str() == Some("logdrive-logs");
        let compressed = settings["codec"] == "best_compression";
        assert_eq!((named, compressed), (lifecycle == "ilm", lifecycle == "ism"), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_answers_but_does_no_work_rests_while_others_work() {
    let good = BulkServer::start(1, NO_FAULTS).await;
    let n_asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let kept = Arc::clone(&n_asked);
    let bad = Server::start(move |request| {
        if request.target.starts_with("/_bulk") {
            kept.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            return Reaction::status(502);
        }
        Reaction::json(200, &json!({}))
    });
    let bad = bad.await;
    let more = "batch: { max_bytes: 300 }\nconcurrency: 1\ntemplate: { enabled: false }";
    let (mut out, cx) = sink("elasticsearch", &yaml(&[bad.url(), good.server.url()], more));
    assert_eq!(deliver_at_last(&mut *out, &batches(&documents(&[], 200))).await.1, 0);
    assert_eq!(good.books().stored.len(), 200);
    assert_eq!(n_asked.load(std::sync::atomic::Ordering::SeqCst), 3, "three times, then it rests");
    let up = |server: &Server| {
        cx.metrics.sink_endpoint_up.with_label_values(&["out", &format!("{}/", server.url())]).get()
    };
    assert_eq!((up(&bad), up(&good.server)), (0, 1));
}

//! What each channel sends, and to which findings are routed.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::lab::{FarEnd, Finding, finding, give, sink, until};
use crate::server::Request;

/// Whether a request is what the documentation of the channel asks for.
fn is_documented(request: &Request) -> bool {
    let is_json = request.headers.get("content-type").is_some_and(|kind| kind == "application/json");
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    request.method == "POST"
        && match &*request.target {
            // https://developer.pagerduty.com/api-reference/368ae3d938c9e-send-an-event-to-pager-duty
            "/v2/enqueue" => {
                let payload = &body["payload"];
                let severities = ["critical", "error", "warning", "info"].map(Value::from);
                let resolve = body["event_action"] == "resolve" && text(&body["dedup_key"]);
                let trigger = body["event_action"] == "trigger"
                    && text(&payload["summary"])
                    && text(&payload["source"])
                    && severities.contains(&payload["severity"]);
                is_json && body["routing_key"] == "R0" && (resolve || trigger)
            }
            // https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
            "/slack" => {
                let attachments = body["attachments"].as_array();
                is_json && text(&body["text"]) && attachments.is_some_and(|all| all.len() == 1)
            }
            // https://learn.microsoft.com/en-us/microsoftteams/platform/webhooks-and-connectors/how-to/add-incoming-webhook
            "/teams" => {
                let attachment = &body["attachments"][0];
                is_json
                    && body["type"] == "message"
                    && attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
                    && attachment["content"]["type"] == "AdaptiveCard"
                    && attachment["content"]["body"].is_array()
            }
            "/sms" => {
                let form = String::from_utf8_lossy(&request.body);
                request.headers["authorization"].starts_with("Basic ")
                    && form.starts_with("Body=%5B")
                    && form.contains("&From=%2B1&To=%2B49")
            }
            "/hook" => {
                let signature = &request.headers["webhook-signature"];
                let decoded =
                    base64::engine::general_purpose::STANDARD.decode(signature.trim_start_matches("v1,"));
                is_json
                    && request.headers["webhook-timestamp"].parse::<u64>().is_ok()
                    && !request.headers["webhook-id"].is_empty()
                    && decoded.is_ok_and(|mac| mac.len() == 32)
                    && text(&body["title"])
            }
            // https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
            "/api/v2/alerts" => is_json && text(&body[0]["labels"]["alertname"]) && text(&body[0]["endsAt"]),
            _ => false,
        }
}

fn channels(url: &str) -> String {
    format!(
        r#"
channels:
  am: {{ alertmanager: {{ endpoint: ["{url}"] }} }}
  duty: {{ pagerduty: {{ routing_key: R0, endpoint: "{url}" }} }}
  chat: {{ slack: {{ url: "{url}/slack" }} }}
  office: {{ teams: {{ url: "{url}/teams" }} }}
  phone:
    sms:
      url: "{url}/sms"
      to: ["+491", "+492"]
      fields: {{ To: "{{to}}", From: "+1", Body: "{{text}}" }}
      auth: {{ basic: {{ user: u, password: p }} }}
  hook: {{ webhook: {{ url: "{url}/hook", secret: "whsec_c2VjcmV0" }} }}
"#
    )
}

#[tokio::test]
async fn every_channel_is_told_of_beginning_and_end_as_documented() {
    let far = FarEnd::start(|request| if is_documented(request) { 202 } else { 400 }).await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = channels(&far.url()) + "group_wait: 100ms\nresolve_after: 1s\n";
    let (mut sink, metrics) = sink(dir.path(), &yaml);
    sink.connect().await.unwrap();
    // The same finding twice, and another of its group.
    give(&mut *sink, &[finding("a", "card 1", "P1"), finding("b", "card 1", "P1")]).await;
    give(&mut *sink, &[finding("a", "card 1", "P1")]).await;
    let all = ["/api/v2/alerts", "/v2/enqueue", "/slack", "/teams", "/hook"];
    until("all are told twice", || {
        let far = &far;
        all.iter().all(|target| far.bodies(target).len() == 2) && far.taken().len() == 14
    })
    .await;
    let duty = far.bodies("/v2/enqueue");
    assert_eq!(duty[0]["dedup_key"], duty[1]["dedup_key"]);
    assert_eq!(duty[1]["event_action"], "resolve");
    let hook = far.bodies("/hook");
    assert_eq!((&hook[0]["status"], &hook[1]["status"]), (&json!("firing"), &json!("resolved")));
    assert_eq!(hook[0]["count"], 2);
    assert_eq!(hook[0]["findings"][0], json!({"id": "b", "tenant": "acme"}));
    assert_eq!(metrics.sink_duplicates.with_label_values(&["alerts"]).get(), 1);
    sink.close().await.unwrap();
    assert!(!dir.path().join("alerts/refused.ndjson").exists());
}

#[tokio::test]
async fn severity_tenant_and_condition_choose_the_route_and_time_escalates() {
    let far = FarEnd::start(|_| 200).await;
    let url = far.url();
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        r#"
channels:
  first: {{ webhook: {{ url: "{url}/first" }} }}
  second: {{ webhook: {{ url: "{url}/second", send_resolved: false }} }}
  boss: {{ webhook: {{ url: "{url}/boss" }} }}
routes:
  - {{ severity: [P0, P1], where: "score > 2", channels: [first], escalate: [{{ after: 300ms, channels: [boss] }}] }}
  - {{ tenant: [other], channels: [second], continue: true }}
  - {{ tenant: [other], channels: [first] }}
group_wait: 50ms
resolve_after: 1500ms
"#
    );
    let (mut sink, metrics) = sink(dir.path(), &yaml);
    sink.connect().await.unwrap();
    let routed =
        |id: &str, severity, tenant, condition| Finding { tenant, condition, ..finding(id, id, severity) };
    give(
        &mut *sink,
        &[
            routed("matches", "P0", "acme", true),
            routed("too low", "P2", "acme", true),
            routed("not so", "P1", "acme", false),
            routed("of another", "P3", "other", true),
        ],
    )
    .await;
    let told = |target: &str| -> Vec<(String, String)> {
        let bodies = far.bodies(target).into_iter();
        let mut told: Vec<_> = bodies
            .map(|b| (b["labels"]["entity"].as_str().unwrap().into(), b["status"].as_str().unwrap().into()))
            .collect();
        told.sort();
        told
    };
    let pair = |entity: &str, status: &str| (entity.to_owned(), status.to_owned());
    until("everything is over", || told("/first").len() == 4 && told("/boss").len() == 2).await;
    assert_eq!(
        told("/first"),
        [
            pair("matches", "firing"),
            pair("matches", "resolved"),
            pair("of another", "firing"),
            pair("of another", "resolved"),
        ]
    );
    assert_eq!(told("/second"), [pair("of another", "firing")]);
    assert_eq!(told("/boss"), [pair("matches", "firing"), pair("matches", "resolved")]);
    assert_eq!(metrics.alert_unrouted.with_label_values(&["alerts"]).get(), 2);
}

#[tokio::test]
async fn what_is_no_finding_is_a_reject() {
    let dir = tempfile::tempdir().unwrap();
    let (mut sink, _) = sink(dir.path(), &channels("http://127.0.0.1:9"));
    sink.connect().await.unwrap();
    let rows = [finding("a", "x", "high"), finding("b", "x", "P3")];
    let rejects = sink.write(&crate::lab::batch(&rows)).await.unwrap().unwrap();
    assert_eq!(rejects.num_rows(), 1);
}

//! What the server does not take, and whom it does not let in.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringViewArray};
use logdrive_connectors::ConnectorError;
use logdrive_schemas::Batch;

use crate::certificates::Certificates;
use crate::server::{PASSWORD, Server, USER};
use crate::support::{batch, count, deliver, sink, texts};

/// Rows with a number and a text.
pub(crate) fn numbered(partition: u64, first: u64, texts: &[String]) -> Batch {
    let documents: Vec<String> = (first..).take(texts.len()).map(|n| format!("{{\"n\":{n}}}")).collect();
    let numbers: Int64Array = (first as i64..).take(texts.len()).map(Some).collect();
    let values: StringViewArray = texts.iter().map(|text| Some(text.as_str())).collect();
    let columns: [(&str, ArrayRef); 2] = [("n", Arc::new(numbers)), ("text", Arc::new(values))];
    batch(partition, first, &documents, &columns)
}

pub(crate) fn plain(n_rows: usize) -> Vec<String> {
    vec!["ok".to_owned(); n_rows]
}

pub(crate) async fn what_is_refused_is_a_reject_and_nothing_else_is(server: &Server) {
    server.psql(
        "CREATE TABLE strict (n bigint PRIMARY KEY, text varchar(10) NOT NULL CHECK (text <> 'bad'), \
         small smallint GENERATED ALWAYS AS (least(n, 1)) STORED); \
         CREATE TABLE parents (n bigint PRIMARY KEY); INSERT INTO parents SELECT generate_series(0, 2000); \
         ALTER TABLE strict ADD FOREIGN KEY (n) REFERENCES parents DEFERRABLE INITIALLY DEFERRED; \
         INSERT INTO strict VALUES (77, 'mine')",
    );
    let mut all = plain(1000);
    for (n, text) in [(10, "bad"), (500, "far too long for it"), (999, "nul \0 in it")] {
        all[n] = text.into();
    }
    let yaml = server.yaml() + "table: strict\n";
    let (mut out, cx) = sink("postgres", &yaml);
    out.connect().await.unwrap();
    // 77 is there, and 1001 to 1999 have parents, but not 2001.
    let batches = [numbered(1, 0, &all), numbered(1, 2000, &plain(2))];
    let rejects = deliver(&mut *out, &batches).await.unwrap();
    let mut reasons = texts(&rejects, "reason");
    reasons.sort();
    let codes: Vec<&str> = reasons.iter().map(|reason| &reason[..reason.find(':').unwrap()]).collect();
    let expected = ["postgres_22001", "postgres_22021", "postgres_23503", "postgres_23505", "postgres_23514"];
    assert_eq!(codes, expected, "{reasons:?}");
    let originals = texts(&rejects, "original");
    assert!(["{\"n\":77}", "{\"n\":2001}"].iter().all(|of| originals.iter().any(|found| found == of)));
    assert_eq!(server.count("SELECT count(*) FROM strict WHERE text = 'ok'"), 1002 - 5);
    assert_eq!(count(&cx.metrics.sink_rows), 1002 - 5);
    assert!(count(&cx.metrics.sink_retried_rows) > 0);

    // After a crash behind the commit nobody knows whether the rejects arrived: they are said again, as the same rows.
    let (mut again, cx) = sink("postgres", &yaml);
    again.connect().await.unwrap();
    let repeated = deliver(&mut *again, &batches).await.unwrap();
    let sorted = |rejects: &[Batch]| {
        let ids = rejects.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| batch.id(row)));
        let mut all: Vec<_> = ids.zip(texts(rejects, "reason")).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&repeated), sorted(&rejects));
    assert_eq!((count(&cx.metrics.sink_rows), count(&cx.metrics.sink_duplicates)), (0, 1002));
}

pub(crate) async fn many_refused_rows_are_found_among_the_others(server: &Server) {
    server.psql("CREATE TABLE half (n bigint, text text CHECK (text <> 'bad'))");
    let all: Vec<String> = (0..600).map(|n| if n % 2 == 0 { "bad".into() } else { "ok".into() }).collect();
    let (mut out, _) = sink("postgres", &(server.yaml() + "table: half\n"));
    out.connect().await.unwrap();
    let rejects = deliver(&mut *out, &[numbered(1, 0, &all)]).await.unwrap();
    assert_eq!(rejects.iter().map(Batch::num_rows).sum::<usize>(), 300);
    assert_eq!(server.psql("SELECT count(*), min(n % 2) FROM half"), "300|1");
}

pub(crate) async fn what_the_configuration_asks_in_vain_is_said_at_once(server: &Server) {
    server.psql("CREATE TABLE narrow (n bigint); CREATE VIEW seen AS SELECT n, 'x' AS text FROM narrow");
    for (rest, named) in [
        ("table: nowhere\n", "nowhere"),
        ("table: narrow\n", "text"),
        ("table: none.such\ncreate_table: true\n", "none"),
        ("table: seen\n", "view"),
    ] {
        let (mut out, _) = sink("postgres", &(server.yaml() + rest));
        let result = match out.connect().await {
            Ok(()) => deliver(&mut *out, &[numbered(1, 0, &plain(1))]).await.map(drop),
            Err(error) => Err(error),
        };
        match result.unwrap_err() {
            ConnectorError::Refused { reason, .. } => assert!(reason.contains(named), "{rest}: {reason}"),
            error => panic!("{rest}: {error:?}"),
        }
    }
    // What has worked may work again.
    let (mut out, _) = sink("postgres", &(server.yaml() + "table: narrow\ncolumns: [n]\n"));
    out.connect().await.unwrap();
    deliver(&mut *out, &[numbered(1, 0, &plain(5))]).await.unwrap();
    server.psql("ALTER TABLE narrow RENAME TO away");
    let error = deliver(&mut *out, &[numbered(1, 5, &plain(5))]).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Busy { .. }), "{error:?}");
    assert!(matches!(out.connect().await, Err(ConnectorError::Disconnected { .. })));
    server.psql("ALTER TABLE away RENAME TO narrow");
    out.connect().await.unwrap();
    deliver(&mut *out, &[numbered(1, 5, &plain(5))]).await.unwrap();
    assert_eq!(server.count("SELECT count(*) FROM narrow"), 10);
}

pub(crate) async fn certificates_names_and_passwords_are_checked(
    server: &Server,
    certificates: &Certificates,
) {
    let yaml = |host: &str, password: &str, tls: &str| {
        format!(
            "endpoint: \"postgresql://{host}:{}/postgres\"\nusername: {USER}\npassword: {password}\n{tls}\n\
             table: secure\ncreate_table: true\n",
            server.port
        )
    };
    let path = |name: &str| certificates.path(name).display().to_string();
    let tls = |ca: &str, client: &str| {
        let shown = format!(
            "certificate: \"{}\", key: \"{}\"",
            path(&format!("{client}.pem")),
            path(&format!("{client}.key"))
        );
        format!("tls: {{ ca: \"{}\", {shown} }}", path(ca))
    };
    for host in ["localhost", "127.0.0.1"] {
        let (mut good, cx) = sink("postgres", &yaml(host, PASSWORD, &tls("ca.pem", "client")));
        good.connect().await.unwrap();
        let first = server.try_psql("SELECT count(*) FROM secure").map_or(0, |n| n.parse().unwrap());
        deliver(&mut *good, &[numbered(1, first, &plain(100))]).await.unwrap();
        assert_eq!(count(&cx.metrics.sink_rows), 100);
    }
    assert_eq!(server.count("SELECT count(*) FROM secure"), 200);
    // A wrong password is our fault, and said; a server or a client that nobody vouches for is not spoken with.
    let (mut wrong, _) = sink("postgres", &yaml("localhost", "wrong", &tls("ca.pem", "client")));
    let error = wrong.connect().await.unwrap_err();
    assert!(matches!(error, ConnectorError::Refused { .. }), "{error:?}");
    for refused in [
        yaml("localhost", PASSWORD, &tls("stranger.pem", "client")),
        yaml("localhost", PASSWORD, &tls("ca.pem", "stranger")),
        yaml("127.0.0.2", PASSWORD, &tls("ca.pem", "client")),
        yaml("localhost", PASSWORD, &format!("tls: {{ ca: \"{}\" }}", path("ca.pem"))),
        yaml("localhost", PASSWORD, ""),
    ] {
        let (mut out, _) = sink("postgres", &refused);
        assert!(out.connect().await.is_err(), "{refused}");
    }
}

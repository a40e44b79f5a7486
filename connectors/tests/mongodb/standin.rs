//! A stand-in for MongoDB, which can be had on no machine that these tests run on: it speaks OP_MSG as the driver's
//! specification has it, and knows as many commands as the sink sends.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use mongodb::bson::{Bson, DateTime, Document, doc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What it does with the next insert.
#[derive(Clone, Debug)]
pub(crate) enum Reaction {
    /// Does it, and closes the connection without an answer.
    NoAnswer,
    /// Does nothing, and answers with this error.
    Error(i32, &'static str),
    /// Does it, but the majority has not got it in time.
    NotReplicated,
    /// Does it, but for every document: the primary steps down.
    StepsDown,
}

#[derive(Default)]
pub(crate) struct State {
    /// By their `_id`; there is no other index.
    pub(crate) documents: BTreeMap<String, Document>,
    /// Inserts of this many documents or more are too large.
    pub(crate) too_many: Option<usize>,
    pub(crate) reactions: VecDeque<Reaction>,
    /// Commands other than those of the driver itself.
    pub(crate) commands: Vec<Document>,
}

/// The server. It ends when dropped.
pub(crate) struct Standin {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    _task: JoinSet<()>,
}

impl Standin {
    /// `name` is the one of the replica set, by which the driver is told to find it.
    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, local) = (Arc::clone(&shared), stream.local_addr().unwrap());
                connections.spawn(async move {
                    serve(stream, local, name, &state).await;
                });
            }
        });
        Self { address, state, _task: task }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Answers until the connection ends.
async fn serve(mut stream: TcpStream, local: SocketAddr, name: &str, state: &Mutex<State>) -> Option<()> {
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).await.ok()?;
        let int = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        assert_eq!(int(12), 2013, "OP_MSG");
        let mut body = vec![0; int(0) as usize - 16];
        stream.read_exact(&mut body).await.ok()?;
        let answer = answer(&command(&body), local, name, state)?;
        let mut message = Vec::new();
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&int(4).to_le_bytes());
        message.extend_from_slice(&int(4).to_le_bytes());
        message.extend_from_slice(&2013_i32.to_le_bytes());
        message.extend_from_slice(&[0; 5]);
        answer.to_writer(&mut message).unwrap();
        let len = message.len() as i32;
        message[..4].copy_from_slice(&len.to_le_bytes());
        stream.write_all(&message).await.ok()?;
    }
}

/// The command of a message, with its sequences of documents in their place.
fn command(body: &[u8]) -> Document {
    let (mut rest, mut command, mut sequences) = (&body[4..], None, Vec::new());
    let size = |bytes: &[u8]| i32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    while let Some((kind, section)) = rest.split_first() {
        let (section, behind) = section.split_at(size(section));
        rest = behind;
        if *kind == 0 {
            command = Some(Document::from_reader(section).unwrap());
            continue;
        }
        let end = 4 + section[4..].iter().position(|byte| *byte == 0).unwrap();
        let name = std::str::from_utf8(&section[4..end]).unwrap().to_owned();
        let (mut documents, mut section) = (Vec::new(), &section[end + 1..]);
        while !section.is_empty() {
            let (document, behind) = section.split_at(size(section));
            documents.push(Bson::Document(Document::from_reader(document).unwrap()));
            section = behind;
        }
        sequences.push((name, documents));
    }
    let mut command = command.unwrap();
    for (name, documents) in sequences {
        command.insert(name, documents);
    }
    command
}

fn answer(command: &Document, local: SocketAddr, name: &str, state: &Mutex<State>) -> Option<Document> {
    let verb = command.keys().next().unwrap().as_str();
    let mut state = state.lock().unwrap();
    match verb {
        "hello" | "isMaster" | "ismaster" => Some(doc! {
            "helloOk": true, "isWritablePrimary": true, "ismaster": true, "setName": name, "setVersion": 1,
            "hosts": [local.to_string()], "primary": local.to_string(), "me": local.to_string(),
            "maxBsonObjectSize": 16 << 20, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
            "localTime": DateTime::now(), "logicalSessionTimeoutMinutes": 30, "minWireVersion": 0,
            "maxWireVersion": 21, "readOnly": false, "ok": 1.0
        }),
        "insert" => insert(command, &mut state),
        "create" if state.commands.iter().any(|known| known.get("create") == command.get("create")) => {
            Some(doc! { "ok": 0.0, "code": 48, "codeName": "NamespaceExists", "errmsg": "it is there" })
        }
        "create" | "createIndexes" => {
            state.commands.push(command.clone());
            Some(doc! { "ok": 1.0 })
        }
        "ping" | "endSessions" => Some(doc! { "ok": 1.0 }),
        _ => Some(doc! { "ok": 0.0, "code": 59, "codeName": "CommandNotFound", "errmsg": verb }),
    }
}

/// Inserts in no order: each document for itself.
fn insert(command: &Document, state: &mut State) -> Option<Document> {
    assert!(!command.get_bool("ordered").unwrap());
    let concern = command.get_document("writeConcern").unwrap();
    assert_eq!((concern.get_str("w").unwrap(), concern.get_bool("j").unwrap()), ("majority", true));
    let documents = command.get_array("documents").unwrap();
    let error = |code: i32, said: &str| doc! { "ok": 0.0, "code": code, "codeName": "Error", "errmsg": said };
    if state.too_many.is_some_and(|n| n <= documents.len()) {
        return Some(error(10_334, "BSONObj size is invalid"));
    }
    let reaction = state.reactions.pop_front();
    if let Some(Reaction::Error(code, said)) = reaction {
        return Some(error(code, said));
    }
    let mut errors = Vec::new();
    let mut refuse = |index: usize, code: i32, said: String| {
        errors.push(Bson::Document(doc! { "index": index as i32, "code": code, "errmsg": said }));
    };
    for (index, document) in documents.iter().enumerate() {
        let document = document.as_document().unwrap();
        let id = document.get_str("_id").unwrap();
        if matches!(reaction, Some(Reaction::StepsDown)) {
            refuse(index, 10_107, "not primary".into());
        } else if document.contains_key("bad") {
            refuse(index, 121, "Document failed validation".into());
        } else if document.contains_key("same") {
            refuse(index, 11_000, "E11000 duplicate key error collection: d.c index: same_1 dup key".into());
        } else if state.documents.contains_key(id) {
            let said = format!(
                "E11000 duplicate key error collection: d.c index: _id_ dup key: {{ _id: \"{id}\" }}"
            );
            refuse(index, 11_000, said);
        } else {
            state.documents.insert(id.to_owned(), document.clone());
        }
    }
    let mut answer = doc! { "n": (documents.len() - errors.len()) as i32, "ok": 1.0 };
    if !errors.is_empty() {
        answer.insert("writeErrors", errors);
    }
    match reaction {
        Some(Reaction::NoAnswer) => return None,
        Some(Reaction::NotReplicated) => {
            let late =
                doc! { "code": 64, "codeName": "WriteConcernTimeout", "errmsg": "waiting for replication" };
            answer.insert("writeConcernError", late);
        }
        _ => {}
    }
    Some(answer)
}

//! Who is in a room elsewhere: what other processes are asked, and what they are told.

use super::Core;
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::presence::{Attendance, Part, Question, Told};
use crate::cluster::{Body, Member, Message, Socket};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Processes whose answers are taken for one question. What more of them tell is passed over, and the answer is not complete.
const PROCESSES_MAX: usize = 1_024;
/// What a server of Node is called that does not say its name.
const UNKNOWN: &str = "unknown";

/// Questions that have gone out. As many as the [board](crate::bus::presence) has open, and each ends in time.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// By what they are called on the way.
    open: HashMap<String, Open>,
}

#[derive(Debug)]
struct Open {
    /// The number of the question in this process.
    number: u64,
    parts: Vec<Part>,
    /// Processes that have told.
    heard: usize,
    /// How many are to tell; `None` until Redis has said.
    expected: Option<usize>,
    /// Members that may still be listed.
    listed_left: usize,
    complete: bool,
    /// Dropped when the question is over, for whoever waits for that.
    _ends: oneshot::Sender<()>,
}

/// What has come of a question.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    number: u64,
    parts: Vec<Part>,
    complete: bool,
}

impl Questions {
    /// A question goes out. Not `complete` when it is known already that not everybody can be asked.
    fn open(
        &mut self,
        request_id: String,
        number: u64,
        listed_max: usize,
        complete: bool,
        ends: oneshot::Sender<()>,
    ) {
        let (parts, expected, listed_left) = (Vec::new(), None, listed_max);
        let open = Open { number, parts, heard: 0, expected, listed_left, complete, _ends: ends };
        self.open.insert(request_id, open);
    }

    /// So many processes are to tell.
    fn counted(&mut self, request_id: &str, processes: usize) -> Option<Outcome> {
        self.open.get_mut(request_id)?.expected = Some(processes);
        self.end_if_all_heard(request_id)
    }

    /// One of them has told.
    fn heard(&mut self, request_id: &str, mut part: Part) -> Option<Outcome> {
        let open = self.open.get_mut(request_id)?;
        open.heard += 1;
        if open.parts.len() < PROCESSES_MAX {
            part.who.truncate(open.listed_left);
            part.who.shrink_to_fit();
            open.listed_left -= part.who.len();
            open.parts.push(part);
        } else {
            open.complete = false;
        }
        self.end_if_all_heard(request_id)
    }

    fn end_if_all_heard(&mut self, request_id: &str) -> Option<Outcome> {
        let open = self.open.get(request_id)?;
        if open.expected? <= open.heard { self.end(request_id) } else { None }
    }

    /// The time for it is over, if it is not over yet.
    fn end(&mut self, request_id: &str) -> Option<Outcome> {
        let Open { number, parts, heard, expected, complete, .. } = self.open.remove(request_id)?;
        let complete = complete && expected.is_some_and(|expected| expected <= heard);
        Some(Outcome { number, parts, complete })
    }
}

impl Core {
    /// Asks all other processes who is in a room, and tells the bus when they have told or their time is over.
    pub(super) fn ask_elsewhere(self: &Arc<Core>, number: u64, question: &Question) {
        let stats = self.link.get().map(|link| link.stats());
        let (up, all) = stats.map_or((0, 1), |stats| (stats.servers_up.value(), stats.servers.value()));
        if up == 0 {
            return self.bus.tell_presence_elsewhere(number, Vec::new(), false);
        }
        let request_id = format!("{}:presence:{number:x}", self.wire.uid());
        let (ends, ended) = oneshot::channel();
        let listed_max = self.bus.presence().settings.listed_max;
        self.state(|state| {
            state.questions.open(request_id.clone(), number, listed_max, up == all, ends);
        });
        let namespace = namespace_of(&question.room);
        let asked_in = self.wire.asks_in(namespace);
        let body = Body::Presence {
            room: room_of(&question.room).into(),
            of: (asked_in != namespace).then_some(namespace.into()),
            who: question.who,
            request_id: request_id.as_str().into(),
        };
        self.say(&self.message(asked_in, body));
        tokio::spawn(self.clone().wait_for_parts(asked_in.to_owned(), request_id, ended));
    }

    /// Waits until all have told, or their time is over.
    async fn wait_for_parts(
        self: Arc<Core>,
        namespace: String,
        request_id: String,
        ended: oneshot::Receiver<()>,
    ) {
        let counting = async {
            let processes = self.servers(&namespace).await;
            // This one is counted where it listens. When Redis does not say, it is not known who is missing.
            let own = usize::from(namespace == "/" || self.bus.find(&room_key(&namespace, "")).is_some());
            if let Some(others) = processes.checked_sub(own).filter(|_| processes > 0) {
                let outcome = self.state(|state| state.questions.counted(&request_id, others));
                self.settle(outcome);
            }
            std::future::pending::<()>().await;
        };
        // An error is the end of the question, too.
        let waiting = timeout(self.presence_timeout, ended);
        tokio::select! {
            () = counting => {}
            _ = waiting => {}
        }
        let outcome = self.state(|state| state.questions.end(&request_id));
        self.settle(outcome);
    }

    /// A process has told who is there.
    pub(super) fn heard_part(&self, request_id: &str, part: Part) {
        let outcome = self.state(|state| state.questions.heard(request_id, part));
        self.settle(outcome);
    }

    fn settle(&self, outcome: Option<Outcome>) {
        if let Some(Outcome { number, parts, complete }) = outcome {
            self.bus.tell_presence_elsewhere(number, parts, complete);
        }
    }

    /// Tells another process who is in a room here, as soon as the shards have told. It is not answered when too many ask, and goes by the
    /// time that it has set.
    pub(super) fn tell_elsewhere(
        self: &Arc<Core>,
        namespace: &str,
        uid: Option<&str>,
        question: &Question,
        request_id: &str,
    ) {
        let (tell, told) = oneshot::channel();
        let call = move |attendance: Arc<Attendance>| {
            // Nobody waits for it when the process ends.
            tell.send(attendance).ok();
        };
        if self.bus.ask_presence_here(question, Box::new(call), self.clock.now()).is_err() {
            return;
        }
        let (core, namespace, to) = (self.clone(), namespace.to_owned(), uid.map(str::to_owned));
        let request_id = request_id.to_owned();
        tokio::spawn(async move {
            let Ok(attendance) = told.await else { return };
            let member = |member: &crate::bus::presence::Member| Member {
                id: member.id.to_string().into(),
                user: member.user.as_deref().map(|user| user.to_owned().into()),
            };
            let body = Body::PresenceAnswer {
                request_id: request_id.into(),
                node: core.bus.presence().settings.node.as_str().into(),
                members: attendance.members,
                who: attendance.who.iter().flatten().map(member).collect(),
            };
            core.say(&Message { to: to.map(Cow::from), ..core.message(&namespace, body) });
        });
    }
}

/// What a throng has told.
pub(super) fn of_throng(node: &str, members: u64, who: Vec<Member<'_>>) -> Part {
    let told = |Member { id, user }: Member<'_>| Told {
        id: id.as_ref().into(),
        user: user.map(|user| user.into_owned().into_boxed_str()),
    };
    Part { node: node.to_owned(), members, who: who.into_iter().map(told).collect() }
}

/// What a server of Node has told: all its sockets, whether they are to be listed or not.
pub(super) fn of_node(uid: Option<&str>, sockets: Vec<Socket<'_>>) -> Part {
    let members = sockets.len() as u64;
    let who = sockets.into_iter().map(|socket| Told { id: socket.id.as_ref().into(), user: None });
    Part { node: uid.unwrap_or(UNKNOWN).to_owned(), members, who: who.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(node: &str, who: &[&str]) -> Part {
        let who = who.iter().map(|id| Told { id: (*id).into(), user: None });
        Part { node: node.to_owned(), members: 5, who: who.collect() }
    }

    fn open(questions: &mut Questions, complete: bool) -> oneshot::Receiver<()> {
        let (ends, ended) = oneshot::channel();
        questions.open("q".to_owned(), 7, 3, complete, ends);
        ended
    }

    #[test]
    fn a_question_ends_when_all_have_told() {
        let mut questions = Questions::default();
        let mut ended = open(&mut questions, true);
        assert_eq!(questions.heard("q", part("a", &["1", "2"])), None, "it is not known how many there are");
        assert_eq!(questions.counted("q", 2), None);
        assert_eq!(questions.heard("another", part("b", &[])), None);
        assert!(ended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        let parts = vec![part("a", &["1", "2"]), part("b", &["3"])];
        let outcome = questions.heard("q", part("b", &["3", "4"]));
        assert_eq!(outcome, Some(Outcome { number: 7, parts, complete: true }), "no more than are listed");
        assert!(ended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert_eq!(questions.end("q"), None, "it has ended");
        assert_eq!(questions.heard("q", part("late", &[])), None);
        let _nobody = open(&mut questions, true);
        assert_eq!(questions.counted("q", 0), Some(Outcome { number: 7, parts: Vec::new(), complete: true }));
    }

    #[test]
    fn what_is_missing_makes_it_incomplete() {
        let mut questions = Questions::default();
        let check = |questions: &mut Questions| questions.end("q").map(|outcome| outcome.complete);
        let _one = open(&mut questions, true);
        questions.counted("q", 2);
        questions.heard("q", part("a", &[]));
        assert_eq!(check(&mut questions), Some(false), "one has not told in time");
        let _two = open(&mut questions, true);
        questions.heard("q", part("a", &[]));
        assert_eq!(check(&mut questions), Some(false), "Redis has not said how many there are");
        let _three = open(&mut questions, false);
        assert_eq!(questions.counted("q", 0).map(|outcome| outcome.complete), Some(false));
        let _four = open(&mut questions, true);
        questions.counted("q", PROCESSES_MAX + 1);
        let outcome =
            (0..=PROCESSES_MAX).find_map(|number| questions.heard("q", part(&number.to_string(), &[])));
        let outcome = outcome.expect("all have told");
        assert_eq!((outcome.parts.len(), outcome.complete), (PROCESSES_MAX, false));
    }
}

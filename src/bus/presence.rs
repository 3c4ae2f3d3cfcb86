//! Who is in a room, on all shards and in all processes: the questions that are under way, and answers that are kept for a while.
//!
//! Nothing is written down when somebody joins or leaves: who wants to know asks, and whoever is alive answers. So a process that has died
//! leaves nothing behind. All who ask about one room while a question about it is under way, or its answer is young enough, cost that one
//! question.

use crate::message::{ShardId, ShardSet};
use crate::stats::Counter;
use crate::time::Time;
use compact_str::CompactString;
use serde::{Serialize, Serializer};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Questions that may be under way at a time. Who asks one more is refused.
pub const OPEN_MAX: usize = 4_096;
/// Answers that are kept, and the bytes behind them. What is more pushes out the oldest.
pub const KEPT_MAX: usize = 4_096;
/// See above.
pub const KEPT_BYTES_MAX: usize = 16 << 20;

/// How questions are answered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What this process is called in answers.
    pub node: String,
    /// How long an answer is given again, counted from when its question was put, in milliseconds; 0 for not at all.
    pub age_max_ms: u32,
    /// Members that an answer lists.
    pub listed_max: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { node: "throng".to_owned(), age_max_ms: 1_000, listed_max: 1_000 }
    }
}

/// What somebody wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The room, by the name that the directory knows.
    pub room: CompactString,
    /// True when its members are wanted, and not only how many there are.
    pub who: bool,
}

/// Who is told the answer.
pub enum Asker {
    /// A shard, by mail.
    Shard(ShardId),
    /// Somebody else, by a call on whatever thread has the last part of the answer: it must not wait for anything. It is also made when the
    /// answer is known at once.
    Call(Call),
}

/// See [`Asker::Call`].
pub type Call = Box<dyn FnOnce(Arc<Attendance>) + Send>;

/// What came of asking.
#[derive(Debug)]
pub enum Asked {
    /// The answer is known.
    Known(Arc<Attendance>),
    /// It comes when it is: under this number, to a shard.
    Waits(u64),
}

/// As many questions as may be are under way: nothing was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyQuestions;

/// Who is in a room, as it is told to clients.
#[derive(Debug, Serialize)]
pub struct Attendance {
    /// The room's name, within its namespace.
    #[serde(serialize_with = "as_text")]
    pub room: CompactString,
    /// How many members it has.
    pub members: u64,
    /// Where they are, by the names of the processes.
    pub nodes: Vec<Node>,
    /// Some of them or all, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<Vec<Member>>,
    /// True when there are more members than are listed.
    #[serde(skip_serializing_if = "is_false")]
    pub cut: bool,
    /// True when every process that might have members has told.
    pub complete: bool,
    /// When the question was put: what has changed since may be missing.
    #[serde(skip)]
    pub asked_at: Time,
    #[serde(skip)]
    json: OnceLock<String>,
}

/// How many of the members are in one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The name of the process.
    #[serde(serialize_with = "as_text")]
    pub node: Arc<str>,
    /// How many.
    pub members: u64,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its id: that of a socket of Socket.IO, or one that a connection of the native dialect has for this.
    #[serde(serialize_with = "as_text")]
    pub id: CompactString,
    /// The name of its process.
    #[serde(serialize_with = "as_text")]
    pub node: Arc<str>,
    /// Who it is, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Box<str>>,
}

/// What one process tells of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The name of the process.
    pub node: String,
    /// How many members are there.
    pub members: u64,
    /// Their ids, and their names where these are known; as many as are told.
    pub who: Vec<Told>,
}

/// A member as its process tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// See [`Member::id`].
    pub id: CompactString,
    /// See [`Member::user`].
    pub user: Option<Box<str>>,
}

/// What is under way and what is kept. Questions are bounded by [`OPEN_MAX`], answers by [`KEPT_MAX`] and [`KEPT_BYTES_MAX`]; who waits is
/// bounded where it waits.
#[derive(Debug, Default)]
pub struct Presence {
    /// How questions are answered.
    pub settings: Settings,
    state: Mutex<State>,
    /// What was counted.
    pub stats: PresenceStats,
}

/// The numbers of [`Presence`]. Written inside its lock, so there is one writer at a time.
#[derive(Debug, Default)]
pub struct PresenceStats {
    /// Questions put: to this process and, where there are some, to all others.
    pub questions: Counter,
    /// Answers that cost no question of their own: one was kept, or one was under way.
    pub shared: Counter,
    /// Answers that lacked what some process might have told.
    pub incomplete: Counter,
    /// Questions of other processes that were answered.
    pub elsewhere: Counter,
    /// Questions that were refused because too many were under way.
    pub refusals: Counter,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Open>,
    /// The numbers of those of `open` that others may join.
    shared: HashMap<Question, u64>,
    kept: HashMap<Question, Arc<Attendance>>,
    /// What is in `kept`, oldest first, with when it was asked. What has been replaced since is in it, too.
    ages: VecDeque<(Time, Question)>,
    kept_bytes: usize,
    count: u64,
}

/// A question under way.
struct Open {
    question: Question,
    asked_at: Time,
    /// Shards that have not told, and the bridge if it has not.
    to_come: usize,
    parts: Vec<Part>,
    complete: bool,
    shards: ShardSet,
    calls: Vec<Call>,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("question", &self.question).finish_non_exhaustive()
    }
}

/// What is to be done once a question is answered.
pub(super) struct Answered {
    pub(super) attendance: Arc<Attendance>,
    /// Who waits for it.
    pub(super) shards: ShardSet,
    pub(super) calls: Vec<Call>,
}

/// What came of a question that was put.
pub(super) enum Put {
    Known(Arc<Attendance>),
    /// Somebody else has put it.
    Waits(u64),
    /// Now it is to be carried to whom it is for.
    Begins(u64),
}

impl Presence {
    /// Nothing is under way, and nothing kept.
    pub fn new(settings: Settings) -> Presence {
        Presence { settings, ..Presence::default() }
    }

    /// Answers a question from what is kept, lets the asker wait for one that is under way, or begins one that waits for `to_come` parts,
    /// `members` being those of this process.
    pub(super) fn put(
        &self,
        question: &Question,
        asker: Asker,
        members: u64,
        to_come: usize,
        now: Time,
    ) -> Result<Put, TooManyQuestions> {
        let mut state = self.lock();
        state.forget(now, self.settings.age_max_ms);
        if let Some(kept) = state.kept.get(question) {
            self.stats.shared.add(1);
            let kept = kept.clone();
            drop(state);
            return Ok(Put::Known(asker.told_at_once(kept)));
        }
        if let Some(number) = state.shared.get(question).copied()
            && let Some(open) = state.open.get_mut(&number)
        {
            self.stats.shared.add(1);
            open.wait(asker);
            return Ok(Put::Waits(number));
        }
        let open = self.open(question, members, to_come, now);
        if to_come == 0 {
            // It costs nothing to ask again, so it is not kept.
            self.stats.questions.add(1);
            let answered = self.answer(open);
            drop(state);
            return Ok(Put::Known(asker.told_at_once(answered.attendance)));
        }
        let number = self.begin(&mut state, open, asker)?;
        self.stats.questions.add(1);
        state.shared.insert(question.clone(), number);
        Ok(Put::Begins(number))
    }

    /// Begins a question of another process about this one, which waits for `to_come` shards. Nobody joins it, and its answer is not kept:
    /// its age is not known to who asks.
    pub(super) fn put_here(
        &self,
        question: &Question,
        call: Call,
        members: u64,
        to_come: usize,
        now: Time,
    ) -> Result<Put, TooManyQuestions> {
        let mut state = self.lock();
        let open = self.open(question, members, to_come, now);
        if to_come == 0 {
            self.stats.elsewhere.add(1);
            let answered = self.answer(open);
            drop(state);
            return Ok(Put::Known(Asker::Call(call).told_at_once(answered.attendance)));
        }
        let number = self.begin(&mut state, open, Asker::Call(call))?;
        self.stats.elsewhere.add(1);
        Ok(Put::Begins(number))
    }

    /// A shard has told who is there.
    pub(super) fn told_here(&self, number: u64, who: Vec<Told>) -> Option<Answered> {
        self.told(number, |open, listed_max| {
            if let Some(own) = open.parts.first_mut() {
                own.who.extend(who.into_iter().take(listed_max - own.who.len().min(listed_max)));
            }
        })
    }

    /// The bridge has told what it has heard from others.
    pub(super) fn told_elsewhere(&self, number: u64, parts: Vec<Part>, complete: bool) -> Option<Answered> {
        self.told(number, |open, _| {
            open.parts.extend(parts);
            open.complete &= complete;
        })
    }

    fn told(&self, number: u64, add: impl FnOnce(&mut Open, usize)) -> Option<Answered> {
        let mut state = self.lock();
        let Entry::Occupied(mut entry) = state.open.entry(number) else { return None };
        add(entry.get_mut(), self.settings.listed_max);
        entry.get_mut().to_come -= 1;
        if entry.get().to_come > 0 {
            return None;
        }
        let open = entry.remove();
        let is_shared = state.shared.get(&open.question) == Some(&number);
        if is_shared {
            state.shared.remove(&open.question);
        }
        let question = open.question.clone();
        let answered = self.answer(open);
        if is_shared && self.settings.age_max_ms > 0 {
            state.keep(question, answered.attendance.clone());
        }
        Some(answered)
    }

    fn open(&self, question: &Question, members: u64, to_come: usize, now: Time) -> Open {
        let own = Part { node: self.settings.node.clone(), members, who: Vec::new() };
        Open {
            question: question.clone(),
            asked_at: now,
            to_come,
            parts: vec![own],
            complete: true,
            shards: ShardSet::default(),
            calls: Vec::new(),
        }
    }

    fn begin(&self, state: &mut State, mut open: Open, asker: Asker) -> Result<u64, TooManyQuestions> {
        if state.open.len() >= OPEN_MAX {
            self.stats.refusals.add(1);
            return Err(TooManyQuestions);
        }
        open.wait(asker);
        state.count += 1;
        let number = state.count;
        state.open.insert(number, open);
        Ok(number)
    }

    fn answer(&self, open: Open) -> Answered {
        let Open { question, asked_at, parts, complete, shards, calls, .. } = open;
        if !complete {
            self.stats.incomplete.add(1);
        }
        let attendance = Attendance::new(&question, parts, complete, asked_at, self.settings.listed_max);
        Answered { attendance: Arc::new(attendance), shards, calls }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, question: Question, attendance: Arc<Attendance>) {
        self.kept_bytes += attendance.size();
        self.ages.push_back((attendance.asked_at, question.clone()));
        if let Some(replaced) = self.kept.insert(question, attendance) {
            self.kept_bytes -= replaced.size();
        }
        while self.ages.len() > KEPT_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            self.forget_oldest();
        }
    }

    /// Forgets what is too old.
    fn forget(&mut self, now: Time, age_max_ms: u32) {
        while self.ages.front().is_some_and(|(asked_at, _)| asked_at.plus_ms(age_max_ms.into()) <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((asked_at, question)) = self.ages.pop_front() else { return };
        if let Entry::Occupied(kept) = self.kept.entry(question)
            && kept.get().asked_at == asked_at
        {
            self.kept_bytes -= kept.remove().size();
        }
    }
}

impl Open {
    fn wait(&mut self, asker: Asker) {
        match asker {
            Asker::Shard(shard) => self.shards.insert(shard),
            Asker::Call(call) => self.calls.push(call),
        }
    }
}

impl Asker {
    /// Hands `attendance` on, after the call if one is to be made.
    fn told_at_once(self, attendance: Arc<Attendance>) -> Arc<Attendance> {
        if let Asker::Call(call) = self {
            call(attendance.clone());
        }
        attendance
    }
}

impl Attendance {
    fn new(
        question: &Question,
        mut parts: Vec<Part>,
        complete: bool,
        asked_at: Time,
        listed_max: usize,
    ) -> Attendance {
        parts.sort_by(|one, next| one.node.cmp(&next.node));
        let mut nodes: Vec<Node> = Vec::new();
        let mut who = Vec::new();
        for Part { node, members, who: told } in parts {
            // Nobody sees to it that names are different, and Node's servers have none in some answers.
            match nodes.last_mut().filter(|last| *last.node == *node) {
                Some(same) => same.members = same.members.saturating_add(members),
                None => nodes.push(Node { node: node.into(), members }),
            }
            let Some(node) = nodes.last().map(|node| &node.node) else { continue };
            let told = told.into_iter().take(listed_max - who.len());
            who.extend(told.map(|Told { id, user }| Member { id, node: node.clone(), user }));
        }
        nodes.retain(|node| node.members > 0);
        let members = nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(node.members));
        Attendance {
            room: super::directory::room_of(&question.room).into(),
            members,
            nodes,
            cut: question.who && (who.len() as u64) < members,
            who: question.who.then_some(who),
            complete,
            asked_at,
            json: OnceLock::new(),
        }
    }

    /// Its fields as JSON, without braces around them: written once, by the first who needs it.
    pub fn fields(&self) -> &str {
        let json = self.json.get_or_init(|| serde_json::to_string(self).unwrap_or_default());
        json.get(1..json.len().saturating_sub(1)).unwrap_or_default()
    }

    /// Milliseconds since the question was put.
    pub fn age_ms(&self, now: Time) -> u64 {
        now.since_ns(self.asked_at) / 1_000_000
    }

    /// Bytes of memory behind it, with its JSON, whether that is written or not.
    fn size(&self) -> usize {
        let member = |member: &Member| {
            let names =
                member.id.len() + member.node.len() + member.user.as_ref().map_or(0, |user| user.len());
            size_of::<Member>() + 2 * names + 32
        };
        let who = self.who.iter().flatten().map(member).sum::<usize>();
        let nodes = self.nodes.iter().map(|node| size_of::<Node>() + 2 * node.node.len() + 32).sum::<usize>();
        // The room's name is in the question, too, and that in two places.
        size_of::<Attendance>() + 5 * self.room.len() + who + nodes
    }
}

/// Names of whatever kind of string are text.
fn as_text<S: Serializer>(name: &impl AsRef<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_ref())
}

fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(age_max_ms: u32, listed_max: usize) -> Presence {
        Presence::new(Settings { node: "here".to_owned(), age_max_ms, listed_max })
    }

    fn at(ms: u64) -> Time {
        Time::default().plus_ms(ms)
    }

    fn about(room: &str, who: bool) -> Question {
        Question { room: room.into(), who }
    }

    fn told(id: &str) -> Told {
        Told { id: id.into(), user: None }
    }

    fn part(node: &str, members: u64, who: &[&str]) -> Part {
        Part { node: node.to_owned(), members, who: who.iter().map(|id| told(id)).collect() }
    }

    /// Puts a question of a shard, which must begin. Answers its number.
    fn begins(presence: &Presence, question: &Question, to_come: usize, now: Time) -> u64 {
        match presence.put(question, Asker::Shard(0), 2, to_come, now) {
            Ok(Put::Begins(number)) => number,
            _ => panic!("{question:?} must begin"),
        }
    }

    #[test]
    fn all_who_ask_about_a_room_within_the_age_cost_one_question() {
        let presence = presence(1_000, 10);
        let a = about("a", false);
        let number = begins(&presence, &a, 1, at(0));
        for shard in 1..4 {
            let put = presence.put(&a, Asker::Shard(shard), 2, 1, at(10));
            assert!(matches!(put, Ok(Put::Waits(other)) if other == number));
        }
        begins(&presence, &about("b", false), 1, at(10));
        begins(&presence, &about("a", true), 2, at(10));
        let answered =
            presence.told_elsewhere(number, vec![part("there", 3, &[])], true).expect("it is the last");
        assert_eq!(answered.shards.iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        let check = |now: Time| match presence.put(&a, Asker::Shard(0), 9, 1, now) {
            Ok(Put::Known(known)) => {
                assert!(Arc::ptr_eq(&known, &answered.attendance));
                Some(known.age_ms(now))
            }
            _ => None,
        };
        assert_eq!(check(at(10)), Some(10));
        assert_eq!(check(at(999)), Some(999));
        assert_eq!(check(at(1_000)), None, "it is too old, and asked anew");
        assert_eq!((presence.stats.questions.value(), presence.stats.shared.value()), (4, 5));
    }

    #[test]
    fn an_answer_says_who_is_where_and_what_it_lacks() {
        let presence = presence(0, 3);
        let check = |who: bool, parts: Vec<Part>, complete: bool, json: &str| {
            let number = begins(&presence, &about("/guild\0a", who), 2, at(5));
            assert!(presence.told_here(number, vec![told("x"), told("y")]).is_none(), "more is to come");
            let answered = presence.told_elsewhere(number, parts, complete).expect("it is the last");
            assert_eq!(answered.attendance.fields(), json);
            assert!(presence.told_here(number, Vec::new()).is_none(), "nobody waits for more");
        };
        check(
            false,
            vec![part("there", 3, &[]), part("far", 1, &[]), part("there", 1, &[]), part("none", 0, &[])],
            true,
            r#""room":"a","members":7,"nodes":[{"node":"far","members":1},{"node":"here","members":2},{"node":"there","members":4}],"complete":true"#,
        );
        check(
            true,
            Vec::new(),
            false,
            r#""room":"a","members":2,"nodes":[{"node":"here","members":2}],"who":[{"id":"x","node":"here"},{"id":"y","node":"here"}],"complete":false"#,
        );
        check(
            true,
            vec![part("there", 2, &["z", "cut"])],
            true,
            r#""room":"a","members":4,"nodes":[{"node":"here","members":2},{"node":"there","members":2}],"who":[{"id":"x","node":"here"},{"id":"y","node":"here"},{"id":"z","node":"there"}],"cut":true,"complete":true"#,
        );
        assert_eq!(presence.stats.incomplete.value(), 1);
    }

    #[test]
    fn what_is_under_way_and_what_is_kept_is_bounded() {
        let presence = presence(60_000, 10);
        for number in 0..OPEN_MAX {
            begins(&presence, &about(&number.to_string(), false), 1, at(0));
        }
        let one_more = presence.put(&about("more", false), Asker::Shard(0), 0, 1, at(0));
        assert_eq!(one_more.err(), Some(TooManyQuestions));
        let here = presence.put_here(&about("more", true), Box::new(|_| {}), 0, 1, at(0));
        assert_eq!(here.err(), Some(TooManyQuestions));
        assert!(matches!(presence.put(&about("0", false), Asker::Shard(1), 0, 1, at(0)), Ok(Put::Waits(_))));
        for number in 1..=OPEN_MAX as u64 {
            presence.told_elsewhere(number, Vec::new(), true).expect("it is the last");
        }
        // A few with long names: bytes are counted, too.
        let name = "n".repeat(KEPT_BYTES_MAX / 12);
        for at_ms in 0..10 {
            let number = begins(&presence, &about(&format!("{at_ms}:{name}"), false), 1, at(at_ms));
            presence.told_elsewhere(number, Vec::new(), true).expect("it is the last");
            let state = presence.lock();
            assert!(state.kept.len() <= KEPT_MAX && state.kept_bytes <= KEPT_BYTES_MAX);
            assert!(state.open.is_empty() && state.shared.is_empty());
        }
        let mut state = presence.lock();
        state.forget(at(100_000), 60_000);
        assert_eq!((state.kept.len(), state.ages.len(), state.kept_bytes), (0, 0, 0));
    }

    #[test]
    fn what_is_asked_by_others_is_neither_shared_nor_kept() {
        let presence = presence(1_000, 10);
        let a = about("a", true);
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let call = || -> Call {
            let heard = heard.clone();
            Box::new(move |attendance| {
                heard.lock().expect("one thread").push(attendance.fields().to_owned());
            })
        };
        let Ok(Put::Begins(number)) = presence.put_here(&a, call(), 1, 1, at(0)) else { panic!("it begins") };
        begins(&presence, &a, 1, at(0));
        let answered = presence.told_here(number, vec![told("x")]).expect("it is the last");
        answered.calls.into_iter().for_each(|call| call(answered.attendance.clone()));
        assert!(matches!(presence.put_here(&a, call(), 0, 0, at(0)), Ok(Put::Known(_))), "nobody is here");
        assert_eq!(
            *heard.lock().expect("one thread"),
            [
                r#""room":"a","members":1,"nodes":[{"node":"here","members":1}],"who":[{"id":"x","node":"here"}],"complete":true"#,
                r#""room":"a","members":0,"nodes":[],"who":[],"complete":true"#,
            ]
        );
    }
}

//! Asks the backend who clients are, `POST /authenticate`, and remembers for a while what it has said. The same question of several clients is
//! asked once.

use super::caller::{Caller, Problem};
use super::log::{LogPause, brief};
use crate::bus::Bus;
use crate::bus::callouts::{Answer, Callouts, Digest, Forget, Question, Tasks, Verdict, Whose, sha256};
use crate::bus::mailbox::Mail;
use crate::token::Tokens;
use crate::token::claims::Said;
use crate::token::refresh::unix_ms;
use compact_str::CompactString;
use hyper::StatusCode;
use hyper::body::Bytes;
use quick_cache::UnitWeighter;
use quick_cache::unsync::Cache;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// Where the backend is asked.
pub(super) const PATH: &str = "/authenticate";
/// How long after a failure that may pass the backend is asked again, once.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How often a question is asked anew because its answer was to be forgotten in the meantime.
const AGAIN_MAX: usize = 3;
/// Who brings what it has brought before, to be known for longer, is not told again what was said longer ago than this.
const RENEWAL_AGE_MAX: Duration = Duration::from_secs(1);
/// How long nothing is logged of failures after one was.
const LOG_REST: Duration = Duration::from_secs(10);
/// Orders to forget that are kept for the questions under way, but for those of the last time. When there are more, all of these questions
/// are meant.
const ORDERS_KEPT_MAX: usize = 10_000;
/// The answers that memory is reserved for at the start.
const RESERVED_MAX: usize = 1_024;

/// How long what the backend has said is known.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who somebody is, but not for longer than the backend vouches for it; nothing for not at all.
    pub known_for: Duration,
    /// That somebody is refused, likewise.
    pub refused_for: Duration,
    /// How many answers are known at a time.
    pub known_max: usize,
}

/// What there has to be for callouts.
#[derive(Debug)]
pub struct Parts {
    /// How long answers are known.
    pub settings: Settings,
    /// Where questions come from.
    pub callouts: Arc<Callouts>,
    /// What reads answers.
    pub tokens: Arc<Tokens>,
    /// Where answers go.
    pub bus: Arc<Bus>,
}

/// Answers questions, for ever.
pub(super) async fn run(parts: Parts, caller: Arc<Caller>) {
    let bell = Arc::new(Notify::new());
    let ringing = bell.clone();
    parts.callouts.hang_bell(Box::new(move || ringing.notify_one()));
    let desk = Desk::new(parts, caller);
    let mut dismissals = VecDeque::new();
    loop {
        desk.parts.callouts.wake_up();
        let Tasks { forgets, questions } = desk.parts.callouts.take();
        desk.forget(&forgets);
        dismissals.extend(forgets.into_iter().filter(|forget| forget.disconnect));
        desk.dismiss(&mut dismissals);
        questions.into_iter().for_each(|question| desk.find(question));
        if dismissals.is_empty() {
            bell.notified().await;
        } else {
            // Too many orders wait for the shards. Whether or not the bell rings, it is tried again.
            timeout(RETRY_AFTER, bell.notified()).await.ok();
        }
    }
}

struct Desk {
    parts: Parts,
    caller: Arc<Caller>,
    state: Mutex<State>,
    log_pause: LogPause,
}

/// Locked for moments only, and only ever by the backend's thread.
struct State {
    known: Known,
    /// By what is asked, who waits for the answer. At most as many as may wait in all.
    flights: HashMap<Digest, Vec<Question>>,
    orders: Orders,
}

/// The last orders to forget, by their numbers, which begin with 1: what was asked before an order that means it is not to be trusted. Those
/// that came together have one number.
#[derive(Default)]
struct Orders {
    /// Numbers given so far.
    count: u64,
    /// The last to forget everybody, or 0.
    all: u64,
    users: HashMap<CompactString, u64>,
    credentials: HashMap<Digest, u64>,
}

/// What the backend has said, by the hash of what it was asked. Bounded: what was asked for least is forgotten first.
struct Known(Cache<Digest, Fact>);

struct Fact {
    verdict: Verdict,
    asked_at: Instant,
    until: Instant,
    credentials: Credentials,
}

/// Hashes of the token and of the cookies, where there are some.
type Credentials = [Option<Digest>; 2];

impl Desk {
    fn new(parts: Parts, caller: Arc<Caller>) -> Arc<Desk> {
        let known = Known::new(parts.settings.known_max);
        let state = State { known, flights: HashMap::new(), orders: Orders::default() };
        Arc::new(Desk { parts, caller, state: Mutex::new(state), log_pause: LogPause::new(LOG_REST) })
    }

    /// Answers a question by what is known, or has it asked.
    fn find(self: &Arc<Desk>, question: Box<Question>) {
        let Ok(json) = serde_json::to_vec(&question.about) else {
            return self.tell(&question, &Verdict::Unavailable);
        };
        let (what, stats) = (sha256(&[&json]), &self.parts.callouts.stats);
        let known = self.state(|state| state.known.verdict(&what, question.known_until_s, Instant::now()));
        if let Some(verdict) = known {
            stats.hits.add(1);
            return self.tell(&question, &verdict);
        }
        let about = &question.about;
        let credentials =
            [&about.token, &about.cookie].map(|text| text.as_ref().map(|text| sha256(&[text.as_bytes()])));
        let is_under_way = self.state(|state| {
            let waiting = state.flights.entry(what).or_default();
            waiting.push(*question);
            waiting.len() > 1
        });
        if is_under_way {
            stats.shared.add(1);
        } else {
            stats.asked.add(1);
            tokio::spawn(self.clone().fly(what, json.into(), credentials));
        }
    }

    /// Asks the backend, and tells all who wait for that.
    async fn fly(self: Arc<Desk>, what: Digest, json: Bytes, credentials: Credentials) {
        let stats = &self.parts.callouts.stats;
        let (mut asked_at, mut orders) = (Instant::now(), self.state(|state| state.orders.count));
        let mut verdict = self.ask(&what, &json).await;
        // What was said before it was to be forgotten may be just that.
        let is_stale = |verdict: &Verdict, since| {
            self.state(|state| state.orders.is_meant(verdict, &credentials, since))
        };
        for _ in 0..AGAIN_MAX {
            if !is_stale(&verdict, orders) {
                break;
            }
            stats.repeated.add(1);
            (asked_at, orders) = (Instant::now(), self.state(|state| state.orders.count));
            verdict = self.ask(&what, &json).await;
        }
        if is_stale(&verdict, orders) {
            verdict = Verdict::Unavailable;
        }
        let waiting = self.state(|state| {
            state.known.learn(what, &verdict, (asked_at, credentials), &self.parts.settings);
            stats.known.set(state.known.0.len() as u64);
            let waiting = state.flights.remove(&what);
            if state.flights.is_empty() {
                state.orders.drop_all();
            }
            waiting
        });
        for question in waiting.into_iter().flatten() {
            self.tell(&question, &verdict);
        }
    }

    /// Asks the backend, if anybody waits for that, and once more when a failure may pass.
    async fn ask(&self, what: &Digest, json: &Bytes) -> Verdict {
        let stats = &self.parts.callouts.stats;
        let is_wanted = || {
            self.state(|state| {
                state.flights.get(what).is_some_and(|waiting| waiting.iter().any(Question::is_wanted))
            })
        };
        let mut answered = self.caller.post_if(PATH, json.clone(), is_wanted).await;
        if answered.as_ref().is_err_and(|problem| problem.is_passing() && *problem != Problem::Open)
            && is_wanted()
        {
            sleep(RETRY_AFTER).await;
            stats.repeated.add(1);
            answered = self.caller.post_if(PATH, json.clone(), is_wanted).await;
        }
        let verdict = match answered {
            Err(Problem::Unwanted) => return Verdict::Unavailable,
            Ok(answer) => match self.parts.tokens.read_answer(&answer, unix_ms()) {
                Ok(Said::User(vouched)) => Verdict::User(Arc::new(vouched)),
                Ok(Said::Nobody) => Verdict::Nobody,
                Ok(Said::Refused(reason)) => Verdict::Refused(reason),
                Err(what) => self.fail(what),
            },
            Err(Problem::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => Verdict::Refused(None),
            Err(problem) => self.fail(&problem.to_string()),
        };
        stats.answers[verdict.index()].add(1);
        verdict
    }

    /// The backend has not said who somebody is. Nothing of what it was asked is logged, since that is secret.
    fn fail(&self, what: &str) -> Verdict {
        if self.log_pause.is_over() {
            tracing::warn!(
                path = PATH,
                what = &*brief(what),
                "the backend has not said who clients are: they are told to come back"
            );
        }
        Verdict::Unavailable
    }

    /// Forgets what the backend has said, by all orders at once.
    fn forget(&self, forgets: &[Forget]) {
        if forgets.is_empty() {
            return;
        }
        let stats = &self.parts.callouts.stats;
        self.state(|state| {
            let before = state.orders.note(forgets);
            stats.forgotten.add(state.known.forget(&state.orders, before));
            stats.known.set(state.known.0.len() as u64);
            if state.flights.is_empty() {
                state.orders.drop_all();
            }
        });
    }

    /// Has connections ended, of as many users as the shards take orders for.
    fn dismiss(&self, dismissals: &mut VecDeque<Forget>) {
        let before = dismissals.len();
        let is_ordered = |forget: &mut Forget| self.parts.bus.dismiss_forgotten(forget).is_ok();
        while dismissals.pop_front_if(is_ordered).is_some() {}
        self.parts.callouts.settle_dismissals(before - dismissals.len());
    }

    fn tell(&self, question: &Question, verdict: &Verdict) {
        self.parts.callouts.settle(question.size());
        if !question.is_wanted() {
            return;
        }
        let Question { from, number, .. } = *question;
        let answer = Answer { to: from, number, verdict: verdict.clone() };
        self.parts.bus.post(from.shard, Mail::Callout(Box::new(answer)));
    }

    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Orders {
    /// Notes orders that have come together. Answers the number of the last one before them.
    fn note(&mut self, forgets: &[Forget]) -> u64 {
        let before = self.count;
        if self.users.len() + self.credentials.len() > ORDERS_KEPT_MAX {
            self.drop_all();
            self.all = before;
        }
        self.count += 1;
        for Forget { whose, .. } in forgets {
            match whose {
                Whose::User(name) => drop(self.users.insert(name.clone(), self.count)),
                Whose::Credential(digest) => drop(self.credentials.insert(*digest, self.count)),
                Whose::All => self.all = self.count,
            }
        }
        before
    }

    /// True when an order after the one with this number means what was said of somebody with these credentials. That something could not
    /// be found out is not meant.
    fn is_meant(&self, verdict: &Verdict, credentials: &Credentials, since: u64) -> bool {
        let is_later = |number: Option<&u64>| number.is_some_and(|number| *number > since);
        match verdict {
            Verdict::Unavailable => return false,
            Verdict::User(vouched) if is_later(self.users.get(&vouched.user.name)) => return true,
            _ => {}
        }
        let mut credentials = credentials.iter().flatten();
        self.all > since || credentials.any(|digest| is_later(self.credentials.get(digest)))
    }

    /// Nothing is under way any more that was asked before.
    fn drop_all(&mut self) {
        *self = Orders { count: self.count, ..Orders::default() };
    }
}

impl Known {
    fn new(known_max: usize) -> Known {
        Known(Cache::with_weighter(known_max.min(RESERVED_MAX), known_max as u64, UnitWeighter))
    }

    /// What was said, unless that is too old. Who is known until `known_until_s` already, in seconds from 1970, wants to be known for
    /// longer.
    fn verdict(&self, what: &Digest, known_until_s: u64, now: Instant) -> Option<Verdict> {
        let fact = self.0.get(what).filter(|fact| now < fact.until)?;
        let is_news = match &fact.verdict {
            Verdict::User(vouched) => known_until_s == u64::MAX || vouched.user.expires_at_s > known_until_s,
            _ => true,
        };
        (is_news || now < fact.asked_at + RENEWAL_AGE_MAX).then(|| fact.verdict.clone())
    }

    /// Notes what was said to a question that was asked then.
    fn learn(
        &mut self,
        what: Digest,
        verdict: &Verdict,
        (asked_at, credentials): (Instant, Credentials),
        settings: &Settings,
    ) {
        let good_for = match verdict {
            Verdict::User(vouched) => {
                let left_ms = vouched.user.expires_at_s.saturating_mul(1_000).saturating_sub(unix_ms());
                settings.known_for.min(Duration::from_millis(left_ms))
            }
            Verdict::Nobody => settings.known_for,
            Verdict::Refused(_) => settings.refused_for,
            Verdict::Unavailable => Duration::ZERO,
        };
        if good_for.is_zero() {
            self.0.remove(&what);
        } else {
            let until = asked_at + good_for;
            self.0.insert(what, Fact { verdict: verdict.clone(), asked_at, until, credentials });
        }
    }

    /// Forgets what orders after the one with this number mean, and answers how much that was. Looks at all that is known: some milliseconds
    /// for 100,000.
    fn forget(&mut self, orders: &Orders, since: u64) -> u64 {
        let before = self.0.len();
        self.0.retain(|_, fact| !orders.is_meant(&fact.verdict, &fact.credentials, since));
        (before - self.0.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{User, Vouched};
    use crate::backend;
    use crate::backend::stats::BackendStats;
    use crate::bus::callouts::About;
    use crate::message::ConnId;
    use crate::token;
    use axum::Router;
    use axum::http::Uri;
    use std::future::IntoFuture;
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, oneshot};

    fn hash(bytes: &[u8]) -> Digest {
        sha256(&[bytes])
    }

    fn user(name: &str, expires_at_s: u64) -> Verdict {
        let user = User { expires_at_s, ..User::named(name) };
        Verdict::User(Arc::new(Vouched { user, rooms: Vec::new() }))
    }

    fn settings() -> Settings {
        Settings { known_for: Duration::from_secs(60), refused_for: Duration::from_secs(5), known_max: 100 }
    }

    #[test]
    fn an_answer_is_known_for_its_time() {
        let (mut known, now) = (Known::new(100), Instant::now());
        let in_ten_s = unix_ms() / 1_000 + 10;
        let refused = Verdict::Refused(None);
        let mut learn = |name: &str, verdict: &Verdict| {
            known.learn(hash(name.as_bytes()), verdict, (now, [None, None]), &settings());
        };
        learn("for ever", &user("7", u64::MAX));
        learn("brief", &user("7", in_ten_s));
        learn("over", &user("7", 1));
        learn("refused", &refused);
        learn("failed", &Verdict::Unavailable);
        let check = |name: &str, good_for_s: u64| {
            let is_known = |after: Duration| known.verdict(&hash(name.as_bytes()), 0, now + after).is_some();
            let at = Duration::from_secs(good_for_s);
            assert!(!is_known(at + Duration::from_millis(1)), "{name}");
            assert_eq!(is_known(at.saturating_sub(Duration::from_millis(1_100))), good_for_s > 0, "{name}");
        };
        check("for ever", 60);
        check("brief", 10);
        check("over", 0);
        check("refused", 5);
        check("failed", 0);
    }

    #[test]
    fn who_wants_to_be_known_for_longer_is_not_told_what_is_old() {
        let (mut known, now) = (Known::new(100), Instant::now());
        let soon = unix_ms() / 1_000 + 100;
        known.learn(hash(b"a"), &user("7", soon), (now, [None, None]), &settings());
        let is_told = |until_s, after_ms| {
            known.verdict(&hash(b"a"), until_s, now + Duration::from_millis(after_ms)).is_some()
        };
        assert!(is_told(0, 2_000) && is_told(soon - 1, 2_000));
        assert!(!is_told(soon, 2_000), "it says nothing new");
        assert!(is_told(soon, 900), "the backend was asked just now");
        assert!(is_told(u64::MAX, 2_000), "for ever cannot be longer");
    }

    #[test]
    fn what_is_known_is_bounded_and_forgotten_by_order() {
        let mut known = Known::new(100);
        let now = Instant::now();
        for number in 0..1_000_u32 {
            let what = hash(&number.to_be_bytes());
            let credentials = [Some(what), Some(hash(b"cookie"))];
            known.learn(what, &user(&(number % 2).to_string(), u64::MAX), (now, credentials), &settings());
        }
        let all = known.0.len();
        assert!((50..=100).contains(&all), "{all}");
        let mut orders = Orders::default();
        let mut forget = |known: &mut Known, whose: Whose| {
            let before = orders.note(&[Forget { whose, disconnect: false }]);
            known.forget(&orders, before)
        };
        let forgotten = forget(&mut known, Whose::User("1".into()));
        assert!(forgotten > 0 && known.0.len() as u64 == all as u64 - forgotten);
        assert_eq!(forget(&mut known, Whose::Credential(hash(b"other"))), 0);
        let one = *known.0.iter().next().expect("some are left").0;
        assert_eq!(forget(&mut known, Whose::Credential(one)), 1);
        assert!(forget(&mut known, Whose::Credential(hash(b"cookie"))) > 0 && known.0.is_empty());
        known.learn(one, &Verdict::Nobody, (now, [None, None]), &settings());
        assert_eq!(forget(&mut known, Whose::All), 1);
    }

    #[test]
    fn a_flood_of_others_does_not_push_out_who_comes_again() {
        let mut known = Known::new(1_000);
        let now = Instant::now();
        let learn = |known: &mut Known, name: &str, verdict: &Verdict| {
            known.learn(hash(name.as_bytes()), verdict, (now, [None, None]), &settings());
        };
        for number in 0..300 {
            learn(&mut known, &format!("user {number}"), &user("7", u64::MAX));
        }
        for number in 0..300 {
            assert!(known.verdict(&hash(format!("user {number}").as_bytes()), 0, now).is_some());
        }
        for number in 0..20_000 {
            learn(&mut known, &format!("made up {number}"), &Verdict::Refused(None));
        }
        let kept = (0..300)
            .filter(|number| known.verdict(&hash(format!("user {number}").as_bytes()), 0, now).is_some())
            .count();
        assert!(kept > 250, "{kept}");
    }

    #[test]
    fn an_order_means_what_was_asked_before_it_and_nothing_else() {
        let forget = |whose: Whose| Forget { whose, disconnect: false };
        let mut orders = Orders::default();
        let (anna, bert) = (user("anna", u64::MAX), user("bert", u64::MAX));
        let token = [Some(hash(b"token")), None];
        assert_eq!(orders.note(&[forget(Whose::User("anna".into()))]), 0);
        assert!(orders.is_meant(&anna, &token, 0) && !orders.is_meant(&anna, &token, 1));
        assert!(!orders.is_meant(&bert, &token, 0) && !orders.is_meant(&Verdict::Refused(None), &token, 0));
        assert_eq!(orders.note(&[forget(Whose::Credential(hash(b"token")))]), 1);
        assert!(orders.is_meant(&bert, &token, 1) && orders.is_meant(&Verdict::Refused(None), &token, 1));
        assert!(!orders.is_meant(&bert, &[None, None], 0) && !orders.is_meant(&bert, &token, 2));
        assert_eq!(orders.note(&[forget(Whose::All), forget(Whose::User("carl".into()))]), 2);
        assert!(orders.is_meant(&bert, &[None, None], 2) && !orders.is_meant(&bert, &[None, None], 3));
        assert!(!orders.is_meant(&Verdict::Unavailable, &token, 0), "there is nothing to be forgotten");
        // More than are kept: then all that was asked before these is meant.
        let many: Vec<Forget> =
            (0..=ORDERS_KEPT_MAX).map(|number| forget(Whose::User(number.to_string().into()))).collect();
        assert_eq!((orders.note(&many), orders.note(&[forget(Whose::User("anna".into()))])), (3, 4));
        assert!(orders.users.len() == 1 && orders.is_meant(&bert, &token, 3));
        assert!(!orders.is_meant(&bert, &token, 4) && orders.is_meant(&anna, &token, 4));
    }

    /// The path of a request. Who drops the other has it answered.
    type Asked = (String, oneshot::Sender<()>);

    /// A backend that says of each token that it is the user of that name, and who asks it.
    struct World {
        desk: Arc<Desk>,
        asked: mpsc::UnboundedReceiver<Asked>,
        stats: Arc<BackendStats>,
        asker: Arc<()>,
        mail: VecDeque<Mail>,
    }

    impl World {
        async fn new(requests_max: usize) -> World {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("it has one"));
            let (told, asked) = mpsc::unbounded_channel();
            let answer = move |uri: Uri, body: String| answer(told.clone(), uri, body);
            tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
            let stats = Arc::new(BackendStats::default());
            let settings = backend::Settings {
                url,
                secret: String::new(),
                timeout: Duration::from_secs(10),
                requests_max,
                answer_bytes_max: 1_000,
                failures_max: 10,
                rest: Duration::from_secs(1),
                answers: Arc::default(),
            };
            let callouts = Arc::new(Callouts::new(100));
            let bus = Arc::new(Bus::new(1, 10).with_callouts(callouts.clone()));
            let parts = Parts { settings: self::settings(), callouts, tokens: tokens(), bus };
            let caller = Arc::new(Caller::new(settings, true, stats.clone()));
            World { desk: Desk::new(parts, caller), asked, stats, asker: Arc::new(()), mail: VecDeque::new() }
        }

        fn ask(&self, token: &str, asker: &Arc<()>) {
            let about = About { token: Some(token.into()), ..About::default() };
            let (from, asker) = (ConnId { shard: 0, slot: 1, stamp: 1 }, Arc::downgrade(asker));
            let question = Box::new(Question { from, number: 0, known_until_s: 0, asker, about });
            self.desk.parts.callouts.ask(question).expect("there is room");
            let questions = self.desk.parts.callouts.take().questions;
            questions.into_iter().for_each(|question| self.desk.find(question));
        }

        fn forget(&self, name: &str) {
            self.desk.forget(&[Forget { whose: Whose::User(name.into()), disconnect: false }]);
        }

        async fn next(&mut self) -> Asked {
            timeout(Duration::from_secs(10), self.asked.recv()).await.expect("in time").expect("it is there")
        }

        /// What was said to the shard.
        async fn verdict(&mut self) -> Verdict {
            for _ in 0..1_000 {
                self.desk.parts.bus.mailbox(0).collect(&mut self.mail);
                if let Some(Mail::Callout(answer)) = self.mail.pop_front() {
                    return answer.verdict;
                }
                sleep(Duration::from_millis(10)).await;
            }
            panic!("no answer")
        }
    }

    async fn answer(told: mpsc::UnboundedSender<Asked>, uri: Uri, body: String) -> String {
        let (go, gone) = oneshot::channel();
        told.send((uri.path().to_owned(), go)).ok();
        gone.await.ok();
        let name = body.split('"').nth(3).unwrap_or_default();
        format!(r#"{{"user":"{name}"}}"#)
    }

    fn tokens() -> Arc<Tokens> {
        Arc::new(Tokens::new(token::Settings::without_keys()))
    }

    #[tokio::test]
    async fn only_what_an_order_means_is_asked_anew_and_what_is_stale_is_never_said() {
        let mut world = World::new(8).await;
        let asker = world.asker.clone();
        world.ask("anna", &asker);
        let (path, answered) = world.next().await;
        assert_eq!(path, PATH);
        world.forget("bert");
        drop(answered);
        assert!(matches!(world.verdict().await, Verdict::User(vouched) if vouched.user.name == "anna"));
        let repeated = &world.desk.parts.callouts.stats.repeated;
        assert_eq!(repeated.value(), 0, "the order was about another");

        world.desk.forget(&[Forget { whose: Whose::All, disconnect: false }]);
        world.ask("anna", &asker);
        for _ in 0..=AGAIN_MAX {
            let (_, answered) = world.next().await;
            world.forget("anna");
            drop(answered);
        }
        assert!(matches!(world.verdict().await, Verdict::Unavailable));
        assert_eq!(world.desk.parts.callouts.stats.repeated.value(), AGAIN_MAX as u64);
        assert_eq!(world.desk.state(|state| (state.known.0.len(), state.orders.users.len())), (0, 0));
    }

    #[tokio::test]
    async fn strangers_hold_up_nobody_else_and_who_is_gone_is_not_asked_about() {
        let mut world = World::new(4).await;
        let (there, gone) = (world.asker.clone(), Arc::new(()));
        world.ask("a", &there);
        world.ask("b", &there);
        let slow = [world.next().await, world.next().await];
        world.ask("c", &gone);
        world.ask("d", &there);
        let caller = world.desk.caller.clone();
        let event = tokio::spawn(async move { caller.post("/event", r#"{"event":"e"}"#).await });
        let (path, answered) = world.next().await;
        assert_eq!(path, "/event", "these have places of their own");
        drop(answered);
        assert!(event.await.expect("it ends").is_ok());
        drop(gone);
        drop(slow);
        let (_, answered) = world.next().await;
        drop(answered);
        for _ in 0..3 {
            assert!(matches!(world.verdict().await, Verdict::User(vouched) if vouched.user.name != "c"));
        }
        assert_eq!(world.stats.problems[Problem::Unwanted.index()].value(), 1);
        assert_eq!(world.desk.parts.callouts.stats.waiting.value(), 0);
    }

    #[tokio::test]
    async fn orders_that_shards_do_not_take_wait_and_hold_up_nobody() {
        let mut world = World::new(2).await;
        let parts = Parts {
            settings: settings(),
            callouts: world.desk.parts.callouts.clone(),
            tokens: tokens(),
            bus: world.desk.parts.bus.clone(),
        };
        tokio::spawn(run(parts, world.desk.caller.clone()));
        let bus = world.desk.parts.bus.clone();
        let sign_out = |name: &str| Forget { whose: Whose::User(name.into()), disconnect: true };
        while bus.dismiss_forgotten(&sign_out("other")).is_ok() {}
        for _ in 0..10 {
            bus.forget_here(sign_out("anna")).expect("there is room");
        }
        let about = About { token: Some("bert".into()), ..About::default() };
        let (from, asker) = (ConnId { shard: 0, slot: 1, stamp: 1 }, Arc::downgrade(&world.asker));
        let question = Box::new(Question { from, number: 0, known_until_s: 0, asker, about });
        bus.callouts().expect("there are some").ask(question).expect("there is room");
        let (_, answered) = timeout(Duration::from_secs(1), world.next()).await.expect("nothing holds it up");
        drop(answered);
        let mut mail = VecDeque::new();
        let mut orders = 0;
        for _ in 0..1_000 {
            bus.mailbox(0).collect(&mut mail);
            let is_annas =
                |mail: &Mail| matches!(mail, Mail::Order(order) if order.audience.users == ["anna"]);
            orders += mail.drain(..).filter(is_annas).count();
            if orders == 10 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{orders} orders came");
    }
}

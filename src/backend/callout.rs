//! Asks the backend who clients are, `POST /authenticate`, and remembers for a while what it has said. The same question of several clients is
//! asked once.

use super::caller::{Caller, Problem};
use crate::bus::Bus;
use crate::bus::callouts::{Answer, Callouts, Digest, Forget, Question, Task, Verdict, Whose};
use crate::bus::mailbox::Mail;
use crate::token::Tokens;
use crate::token::claims::Said;
use crate::token::refresh::unix_ms;
use hyper::StatusCode;
use hyper::body::Bytes;
use quick_cache::UnitWeighter;
use quick_cache::unsync::Cache;
use ring::digest::{SHA256, digest};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Where the backend is asked.
const PATH: &str = "/authenticate";
/// How long after a failure that may pass the backend is asked again, once.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How often a question is asked anew because something was forgotten in the meantime.
const AGAIN_MAX: usize = 3;
/// Who brings what it has brought before, to be known for longer, is not told again what was said longer ago than this.
const RENEWAL_AGE_MAX: Duration = Duration::from_secs(1);
/// How long nothing is logged of failures after one was.
const LOG_REST: Duration = Duration::from_secs(10);
/// How often the shards are told to end connections when too many orders wait.
const DISMISSALS_MAX: usize = 50;
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
    let known = Known::new(parts.settings.known_max);
    let state = Mutex::new(State { known, flights: HashMap::new(), forgets: 0, logged_until: None });
    let desk = Arc::new(Desk { parts, caller, state });
    loop {
        desk.parts.callouts.wake_up();
        for task in desk.parts.callouts.take() {
            match task {
                Task::Find(question) => desk.find(question),
                Task::Forget(forget) => desk.forget(&forget).await,
            }
        }
        bell.notified().await;
    }
}

struct Desk {
    parts: Parts,
    caller: Arc<Caller>,
    state: Mutex<State>,
}

/// Locked for moments only, and only ever by the backend's thread.
struct State {
    known: Known,
    /// By what is asked, who waits for the answer. At most as many as may wait in all.
    flights: HashMap<Digest, Vec<Question>>,
    /// Orders to forget so far: what was asked before one is not to be trusted after it.
    forgets: u64,
    /// When a failure may be logged again.
    logged_until: Option<Instant>,
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
    /// Answers a question by what is known, or has it asked.
    fn find(self: &Arc<Desk>, question: Box<Question>) {
        let Ok(json) = serde_json::to_vec(&question.about) else {
            return self.tell(&question, &Verdict::Unavailable);
        };
        let (what, stats) = (hash(&json), &self.parts.callouts.stats);
        let known = self.state(|state| state.known.verdict(&what, question.known_until_s, Instant::now()));
        if let Some(verdict) = known {
            stats.hits.add(1);
            return self.tell(&question, &verdict);
        }
        let about = &question.about;
        let credentials =
            [&about.token, &about.cookie].map(|text| text.as_ref().map(|text| hash(text.as_bytes())));
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
        let mut asked_at = Instant::now();
        let mut forgets = self.state(|state| state.forgets);
        let mut verdict = self.ask(&json).await;
        // What was said before something was to be forgotten may be just that.
        for _ in 0..AGAIN_MAX {
            let forgets_now = self.state(|state| state.forgets);
            if forgets_now == forgets || !matches!(verdict, Verdict::User(_)) {
                break;
            }
            stats.repeated.add(1);
            (asked_at, forgets) = (Instant::now(), forgets_now);
            verdict = self.ask(&json).await;
        }
        let waiting = self.state(|state| {
            if state.forgets == forgets {
                state.known.learn(what, &verdict, (asked_at, credentials), &self.parts.settings);
                stats.known.set(state.known.0.len() as u64);
            }
            state.flights.remove(&what)
        });
        for question in waiting.into_iter().flatten() {
            self.tell(&question, &verdict);
        }
    }

    /// Asks the backend, once more when a failure may pass.
    async fn ask(&self, json: &Bytes) -> Verdict {
        let stats = &self.parts.callouts.stats;
        let mut answered = self.caller.post(PATH, json.clone()).await;
        if answered.as_ref().is_err_and(|problem| problem.is_passing() && *problem != Problem::Open) {
            sleep(RETRY_AFTER).await;
            stats.repeated.add(1);
            answered = self.caller.post(PATH, json.clone()).await;
        }
        let verdict = match answered {
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
        let now = Instant::now();
        let is_logged = self.state(|state| {
            let is_logged = state.logged_until.is_none_or(|until| now >= until);
            if is_logged {
                state.logged_until = Some(now + LOG_REST);
            }
            is_logged
        });
        if is_logged {
            tracing::warn!(
                path = PATH,
                what,
                "the backend has not said who clients are: they are told to come back"
            );
        }
        Verdict::Unavailable
    }

    /// Forgets what the backend has said, and has connections ended where that is wanted.
    async fn forget(&self, forget: &Forget) {
        let stats = &self.parts.callouts.stats;
        self.state(|state| {
            state.forgets += 1;
            stats.forgotten.add(state.known.forget(&forget.whose));
            stats.known.set(state.known.0.len() as u64);
        });
        for _ in 0..DISMISSALS_MAX {
            if self.parts.bus.dismiss_forgotten(forget) {
                return;
            }
            sleep(RETRY_AFTER).await;
        }
        tracing::error!("the connections of a user could not be ended: too many orders wait for the shards");
    }

    fn tell(&self, question: &Question, verdict: &Verdict) {
        self.parts.callouts.settle(question.size());
        let Question { from, number, .. } = *question;
        let answer = Answer { to: from, number, verdict: verdict.clone() };
        self.parts.bus.post(from.shard, Mail::Callout(Box::new(answer)));
    }

    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
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

    /// Answers how much was forgotten. Looks at all that is known: some milliseconds for 100,000.
    fn forget(&mut self, whose: &Whose) -> u64 {
        let before = self.0.len();
        let is_meant = |fact: &Fact| match whose {
            Whose::All => true,
            Whose::User(name) => {
                matches!(&fact.verdict, Verdict::User(vouched) if vouched.user.name == *name)
            }
            Whose::Credential(digest) => fact.credentials.contains(&Some(*digest)),
        };
        self.0.retain(|_, fact| !is_meant(fact));
        (before - self.0.len()) as u64
    }
}

fn hash(bytes: &[u8]) -> Digest {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{User, Vouched};

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
        let forgotten = known.forget(&Whose::User("1".into()));
        assert!(forgotten > 0 && known.0.len() as u64 == all as u64 - forgotten);
        assert_eq!(known.forget(&Whose::Credential(hash(b"other"))), 0);
        let one = *known.0.iter().next().expect("some are left").0;
        assert_eq!(known.forget(&Whose::Credential(one)), 1);
        assert!(known.forget(&Whose::Credential(hash(b"cookie"))) > 0 && known.0.is_empty());
        known.learn(one, &Verdict::Nobody, (now, [None, None]), &settings());
        assert_eq!(known.forget(&Whose::All), 1);
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
}

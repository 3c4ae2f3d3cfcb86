//! Properties of room policies, with random events: what leaves, in which order, when, and what clients make of it.

use super::field::FieldPath;
use super::homes::{Counts, Homes};
use super::patch::{self, Object};
use super::*;
use crate::message::{ConnId, Draft, Publication, RoomId, Shape};
use crate::time::Time;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A source of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn path(text: &str) -> FieldPath {
    FieldPath::parse(text).expect("a path")
}

fn policy() -> Policy {
    Policy::new(RoomPattern::parse("*").expect("a pattern"))
}

fn homes(policy: Policy, settings: Settings) -> Homes {
    Homes::new(Arc::new(Policies::new(vec![policy], settings)), 1)
}

fn publication(room: &str, event: &str, payload: &str, except: Option<ConnId>) -> Arc<Publication> {
    let draft = Draft { except, ..Draft::new(room, event, payload.as_bytes(), Time::default()) };
    Arc::new(Publication::new(RoomId::NOWHERE, &draft))
}

fn take(homes: &mut Homes, room: &str, event: &str, payload: Value, now: Time) -> Vec<Arc<Publication>> {
    let mut out = Vec::new();
    homes.take(publication(room, event, &payload.to_string(), None), 0, now, &mut out);
    out
}

/// What `member` gets of what has left: events with their payloads, those of a bundle one by one.
fn items(out: &[Arc<Publication>], member: Option<ConnId>) -> Vec<(String, String, Value)> {
    let mut items = Vec::new();
    let mut add = |it: &Publication| {
        let payload = serde_json::from_slice(it.payload()).unwrap_or(Value::Null);
        items.push((it.room_name().to_owned(), it.event().to_owned(), payload));
    };
    for publication in out {
        match publication.as_bundle() {
            Some(bundle) => bundle.items_for(member).for_each(|(_, item)| add(item)),
            None => add(publication),
        }
    }
    items
}

#[test]
fn nothing_is_lost_out_of_order_or_late() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let batch_max = 2 + random.below(4) as usize;
        let batch = random.chance(50).then(|| Batch {
            most: batch_max,
            event: "batch".into(),
            data_only: random.chance(50),
            lone: random.chance(50),
        });
        let fields = || Box::new([("a".into(), "fieldA".into()), ("b".into(), "fieldB".into())]);
        let merge = (batch.is_none() && random.chance(50))
            .then(|| Merge { event: "merged".into(), fields: fields() });
        let only = random.chance(30).then(|| Box::from(["a".into()]));
        let conflate = random.chance(60).then(|| Conflate { field: path("key"), events: only });
        let dedupe = random.chance(40).then(|| Dedupe { field: path("id"), window_ms: 300 });
        let window_ms = 20 + random.below(200) as u32;
        let policy = Policy {
            batch,
            merge,
            conflate,
            dedupe,
            window_ms,
            urgent: Box::new(["urgent".into()]),
            ..policy()
        };
        let waiting_bytes_max = if random.chance(20) { 2_000 } else { 64 << 20 };
        let mut homes = homes(policy.clone(), Settings { waiting_bytes_max, ..Settings::default() });
        let mut now = Time::from_ms(1_000);
        let mut out: Vec<(Time, Arc<Publication>)> = Vec::new();
        // Of each event: when it came, its room, its name, its key and its id.
        let mut came: Vec<(Time, String, &str, u64, u64)> = Vec::new();
        let steps = 400;
        for step in 0..=steps {
            let mut left = Vec::new();
            if step == steps {
                homes.open(now, &mut left);
            } else if random.chance(30) {
                // No later than a reactor would.
                let due = homes.next_due().unwrap_or(now.plus_ms(50)).max(now);
                now = due.min(now.plus_ms(1 + random.below(80)));
                homes.flush_due(now, &mut left);
                homes.sweep(now, |_| true);
            } else {
                let room = format!("room {}", random.below(3));
                let event = ["a", "b", "c", "urgent"][random.below(4) as usize];
                let (key, id) = (random.below(3), random.below(20));
                let payload = json!({"n": came.len(), "key": key, "id": id});
                came.push((now, room.clone(), event, key, id));
                homes.take(publication(&room, event, &payload.to_string(), None), 0, now, &mut left);
            }
            out.extend(left.into_iter().map(|publication| (now, publication)));
        }
        assert_eq!(homes.waiting_bytes(), 0, "seed {seed}");

        let mut left_at: HashMap<usize, Time> = HashMap::new();
        let mut last: HashMap<String, usize> = HashMap::new();
        for (at, publication) in &out {
            if let Some(bundle) = publication.as_bundle() {
                let least = if policy.batch.as_ref().is_some_and(|batch| batch.lone) { 1 } else { 2 };
                assert!(bundle.items.len() >= least, "seed {seed}: a lone event is no bundle");
                match &bundle.shape {
                    Shape::Batch { .. } => assert!(bundle.items.len() <= batch_max, "seed {seed}"),
                    Shape::Merge { fields } => {
                        let distinct: HashSet<_> = fields.iter().collect();
                        assert_eq!(distinct.len(), bundle.items.len(), "seed {seed}: a field for each");
                    }
                }
            }
            for (room, _, payload) in items(std::slice::from_ref(publication), None) {
                let number = payload["n"].as_u64().expect("a number") as usize;
                assert!(left_at.insert(number, *at).is_none(), "seed {seed}: {number} left twice");
                let before = last.insert(room, number);
                assert!(before.is_none_or(|before| before < number), "seed {seed}: {number} out of order");
            }
        }
        let mut known: HashMap<(&str, &str, u64), Time> = HashMap::new();
        for (number, (at, room, event, key, id)) in came.iter().enumerate() {
            let mut is_duplicate = false;
            if policy.dedupe.is_some() {
                let known = known.entry((room, event, *id)).or_insert(*at);
                is_duplicate = *known != *at
                    || came[..number]
                        .iter()
                        .any(|other| (other.0, &other.1, other.2, other.4) == (*at, room, *event, *id));
                if at.since_ns(*known) >= 300_000_000 {
                    (*known, is_duplicate) = (*at, false);
                }
            }
            let left = left_at.get(&number);
            if is_duplicate {
                assert_eq!(left, None, "seed {seed}: {number} has come again");
                continue;
            }
            let is_conflated = policy.conflate.as_ref().is_some_and(|conflate| {
                conflate.events.as_ref().is_none_or(|events| events.iter().any(|it| it == event))
            });
            let Some(left) = left else {
                assert!(is_conflated, "seed {seed}: {number} is lost");
                // A later one with its key has left, at the latest when it would have.
                let replaced = came.iter().enumerate().skip(number + 1).any(|(other, it)| {
                    (&it.1, it.2, it.3) == (room, *event, *key)
                        && left_at.get(&other).is_some_and(|left| *left <= at.plus_ms(window_ms.into()))
                });
                assert!(replaced, "seed {seed}: the last value is lost, {number}");
                continue;
            };
            assert!(*left <= at.plus_ms(window_ms.into()), "seed {seed}: {number} is late");
            if *event == "urgent" || !policy.waits() {
                assert_eq!(left, at, "seed {seed}: {number} has waited");
            }
        }
        let Counts { taken, duplicates, conflated, .. } = homes.take_counts();
        assert_eq!(taken - duplicates - conflated, left_at.len() as u64, "seed {seed}");
    }
}

fn random_object(random: &mut Random, depth: u32) -> Value {
    let mut object = Object::new();
    for _ in 0..random.below(5) {
        let name = ["a", "b", "c", "d"][random.below(4) as usize];
        let value = match random.below(7) {
            0 => Value::Null,
            1 => json!(random.below(3)),
            2 => json!([random.below(2), null]),
            3 if depth < 3 => random_object(random, depth + 1),
            4 => json!("ä\n"),
            5 => json!({}),
            _ => json!(1.5),
        };
        object.insert(name.to_owned(), value);
    }
    Value::Object(object)
}

#[test]
fn changes_in_order_are_the_state_for_those_who_join_late_too() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let batch =
            random.chance(40).then(|| Batch { most: 3, event: "batch".into(), data_only: false, lone: true });
        let conflate = random.chance(40).then(|| Conflate { field: path("id"), events: None });
        let changes = Changes { event: "state".into(), always: Box::new(["id".into()]) };
        let mut homes =
            homes(Policy { batch, conflate, changes: Some(changes), ..policy() }, Settings::default());
        let mut now = Time::from_ms(1_000);
        // What each client makes of what it gets; the first is there from the beginning.
        let mut clients = vec![Object::new()];
        let mut latest = Object::new();
        let (mut is_told, mut has_passed) = (true, false);
        for step in 0..=300 {
            let mut out = Vec::new();
            if step == 300 {
                homes.open(now, &mut out);
            } else if random.chance(20) {
                now = now.plus_ms(random.below(150));
                homes.flush_due(now, &mut out);
            } else if random.chance(10) {
                let whole =
                    homes.whole("room", now).map(|whole| patch::read(whole.payload()).expect("an object"));
                clients.push(whole.unwrap_or_default());
            } else if random.chance(10) {
                out = take(&mut homes, "room", "other", json!({"a": 7}), now);
            } else if random.chance(5) && homes.whole("room", now).is_some() {
                // Straight to its members, who merge it.
                let object = random_object(&mut random, 0);
                homes.note_passed("room", &publication("room", "state", &object.to_string(), None));
                let Value::Object(patch) = object else { panic!("an object") };
                clients.iter_mut().for_each(|client| patch::apply(client, &patch));
                has_passed = true;
            } else if random.chance(5) {
                // Nobody can make anything of it, and nobody knows that.
                homes.note_passed("room", &publication("room", "state", "[1]", None));
            } else {
                let mut object = random_object(&mut random, 0);
                object["id"] = json!(1);
                latest = patch::read(object.to_string().as_bytes()).expect("an object");
                (is_told, has_passed) = (false, false);
                out = take(&mut homes, "room", "state", object, now);
            }
            for (_, event, payload) in items(&out, None) {
                if event == "state" {
                    let Value::Object(patch) = payload else { panic!("a patch is an object") };
                    assert_eq!(patch["id"], 1, "seed {seed}: it is always there");
                    clients.iter_mut().for_each(|client| patch::apply(client, &patch));
                }
            }
            is_told |= homes.waiting_bytes() == 0;
            let of_home = homes.whole("room", now).map(|it| patch::read(it.payload()).expect("an object"));
            for client in &clients {
                assert_eq!(*client, of_home.clone().unwrap_or_default(), "seed {seed}, step {step}");
                assert!(!is_told || has_passed || *client == latest, "seed {seed}, step {step}");
            }
        }
    }
}

#[test]
fn publishers_do_not_get_their_own_but_all_get_changes() {
    let conn = |stamp| Some(ConnId { shard: 0, slot: 0, stamp });
    let batch = Some(Batch { most: 10, event: "batch".into(), data_only: false, lone: false });
    let conflate = Some(Conflate { field: path("id"), events: Some(Box::new(["e".into()])) });
    let changes = Some(Changes { event: "state".into(), always: Box::default() });
    let mut homes = homes(Policy { batch, conflate, changes, ..policy() }, Settings::default());
    let mut out = Vec::new();
    let now = Time::from_ms(1);
    for (event, payload, by) in [
        ("e", r#"{"id":1,"n":1}"#, conn(1)),
        ("e", r#"{"id":1,"n":2}"#, conn(2)),
        ("f", r#"{"n":3}"#, conn(1)),
        ("state", r#"{"n":4}"#, conn(2)),
    ] {
        homes.take(publication("r", event, payload, by), 0, now, &mut out);
    }
    assert!(out.is_empty());
    homes.flush_due(now.plus_ms(100), &mut out);
    let numbers = |member| -> Vec<u64> {
        items(&out, member).iter().map(|(_, _, payload)| payload["n"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(None), [2, 3, 4]);
    assert_eq!(numbers(conn(1)), [2, 4]);
    assert_eq!(numbers(conn(2)), [3, 4]);
}

#[test]
fn what_cannot_wait_goes_by_itself_behind_what_waits() {
    let batch = Some(Batch { most: 10, event: "batch".into(), data_only: false, lone: false });
    let mut homes = homes(Policy { batch, ..policy() }, Settings::default());
    let now = Time::from_ms(1);
    let draft = Draft::new("r", "e", b"1", now);
    let attachments = [vec![1, 2]];
    let ask = Some(crate::message::Ask { number: 1, until: now });
    for special in [
        Draft { binary: true, ..draft },
        Draft { attachments: &attachments, ..draft },
        Draft { volatile: true, ..draft },
        Draft { ask, ..draft },
    ] {
        let mut out = Vec::new();
        homes.take(publication("r", "a", "1", None), 0, now, &mut out);
        homes.take(publication("r", "b", "2", None), 0, now, &mut out);
        homes.take(Arc::new(Publication::new(RoomId::NOWHERE, &special)), 0, now, &mut out);
        assert_eq!(
            (out.len(), out[0].as_bundle().map(|it| it.items.len()), out[1].event()),
            (2, Some(2), "e")
        );
    }
    assert_eq!(homes.waiting_bytes(), 0);
    // Several arguments do wait.
    let mut out = Vec::new();
    homes.take(
        Arc::new(Publication::new(RoomId::NOWHERE, &Draft { is_list: true, ..draft })),
        0,
        now,
        &mut out,
    );
    assert!(out.is_empty() && homes.waiting_bytes() > 0);
}

#[test]
fn one_alone_is_a_batch_where_that_is_wanted() {
    let batch = Some(Batch { most: 10, event: "batch".into(), data_only: false, lone: true });
    let changes = Some(Changes { event: "state".into(), always: Box::default() });
    let urgent = Box::new(["urgent".into()]);
    let mut homes = homes(Policy { batch, changes, urgent, ..policy() }, Settings::default());
    let now = Time::from_ms(1);
    let sizes = |out: &[Arc<Publication>]| -> Vec<Option<usize>> {
        out.iter().map(|it| it.as_bundle().map(|bundle| bundle.items.len())).collect()
    };
    let mut out = take(&mut homes, "r", "e", json!(1), now);
    homes.flush_due(now.plus_ms(100), &mut out);
    assert_eq!(sizes(&out), [Some(1)]);
    assert_eq!(sizes(&take(&mut homes, "r", "urgent", json!(1), now)), [Some(1)]);
    // What may be in no batch is in none.
    let bytes = Draft { binary: true, ..Draft::new("r", "e", b"1", now) };
    let mut out = Vec::new();
    homes.take(Arc::new(Publication::new(RoomId::NOWHERE, &bytes)), 0, now, &mut out);
    assert_eq!(sizes(&out), [None]);
    // Of a state that has not changed nothing is left, not an empty batch.
    let mut out = take(&mut homes, "r", "state", json!({"a": 1}), now);
    homes.flush_due(now.plus_ms(100), &mut out);
    out.extend(take(&mut homes, "r", "state", json!({"a": 1}), now));
    homes.flush_due(now.plus_ms(200), &mut out);
    assert_eq!(sizes(&out), [Some(1)]);
}

#[test]
fn what_is_no_state_passes_as_it_is() {
    let changes = Some(Changes { event: "state".into(), always: Box::default() });
    let settings = Settings { state_bytes_max: 30, ..Settings::default() };
    let mut homes = homes(Policy { changes, ..policy() }, settings);
    let now = Time::from_ms(1);
    for payload in [json!([1]), json!(null), json!("x"), json!(7)] {
        assert_eq!(items(&take(&mut homes, "r", "state", payload.clone(), now), None)[0].2, payload);
    }
    assert!(homes.whole("r", now).is_none());
    let send = |homes: &mut Homes, payload| {
        items(&take(homes, "r", "state", payload, now), None).pop().map(|(_, _, payload)| payload)
    };
    assert_eq!(send(&mut homes, json!({"a": 1, "b": null})), Some(json!({"a": 1})));
    assert_eq!(send(&mut homes, json!({"a": 1})), None, "nothing has changed");
    assert_eq!(send(&mut homes, json!({"b": 2})), Some(json!({"a": null, "b": 2})));
    // Whatever members make of one that is none, the next is whole.
    for payload in ["[1]", "1e400", r#"{"b":1e400}"#, r#"{"\ud800":1}"#] {
        let mut out = Vec::new();
        homes.take(publication("r", "state", payload, None), 0, now, &mut out);
        assert_eq!(out[0].payload(), payload.as_bytes());
        assert_eq!(send(&mut homes, json!({"b": 2})), Some(json!({"b": 2})), "after {payload}");
    }
    homes.take(publication("r", "state", r#"{"c":1e400}"#, None), 0, now, &mut Vec::new());
    assert_eq!(send(&mut homes, json!({"a": 1})), Some(json!({"a": 1, "b": null})), "what is gone, too");
    let large = json!({"a": "x".repeat(30)});
    assert_eq!(send(&mut homes, large.clone()), Some(large.clone()));
    assert_eq!((homes.states(), homes.states_bytes()), (0, 0));
    assert_eq!(send(&mut homes, large.clone()), Some(large), "each time");
    assert_eq!(send(&mut homes, json!({"b": 2})), Some(json!({"b": 2})), "nothing was known");
    let counts = homes.take_counts();
    assert_eq!((counts.stateless, counts.unchanged), (11, 1));
}

#[test]
fn what_is_kept_is_bounded_and_forgotten() {
    let changes = Some(Changes { event: "state".into(), always: Box::default() });
    let dedupe = Some(Dedupe { field: path("id"), window_ms: 60_000 });
    let settings = Settings {
        states_max: 100,
        dedupe_ids_max: 1_000,
        state_idle_ms: 5_000,
        states_bytes_max: 900,
        state_bytes_max: 100,
        ..Settings::default()
    };
    let mut homes = homes(Policy { changes, dedupe, ..policy() }, settings);
    let mut now = Time::from_ms(1);
    for number in 0..10_000 {
        let room = format!("room {number}");
        assert_eq!(take(&mut homes, &room, "state", json!({"id": number}), now).len(), 1);
        assert!(homes.states() <= 100 && homes.states_bytes() <= 900 && homes.ids() <= 1_000);
        now = now.plus_ms(u64::from(number % 100 == 0));
    }
    assert_eq!(homes.ids(), 1_000);
    assert!(homes.states() > 50, "{}", homes.states());
    assert!(homes.whole("room 9999", now).is_some() && homes.whole("room 1", now).is_none());
    assert!(take(&mut homes, "room 9999", "state", json!({"id": 9999}), now).is_empty(), "known");
    // One of them has members, and so keeps its state.
    for _ in 0..100 {
        now = homes.next_due().expect("something is known").max(now);
        homes.sweep(now, |room| room == "room 9999");
        if homes.states() == 1 && homes.ids() == 0 {
            break;
        }
    }
    assert_eq!((homes.states(), homes.ids()), (1, 0));
    assert!(homes.whole("room 9999", now).is_some());
    now = homes.next_due().expect("one is known");
    homes.sweep(now, |_| false);
    assert_eq!((homes.states(), homes.states_bytes(), homes.next_due()), (0, 0, None));
}

#[test]
fn a_policy_is_found_by_room_and_namespace() {
    let named = |name: &str, namespace: Option<&str>| Policy {
        namespace: namespace.and_then(Pattern::parse),
        ..Policy::new(RoomPattern::parse(name).expect("a pattern"))
    };
    let policies = Policies::new(
        vec![named("a:*", Some("/guild/*")), named("a:*", None), named("*", Some("/"))],
        Settings::default(),
    );
    let find = |namespace, room| policies.find(namespace, room).map(|(place, _)| place);
    assert_eq!(find("/guild/7", "a:1"), Some(0));
    assert_eq!(find("/", "a:1"), Some(1));
    assert_eq!(find("/", "b"), Some(2));
    assert_eq!(find("/guild/7", "b"), None);
    assert_eq!(find("/", ""), None, "all who are in a namespace are no room");
}

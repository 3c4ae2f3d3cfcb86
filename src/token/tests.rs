//! Tokens, good and bad. Those that other software has made are in `tests/it/access.rs`.

use super::claims::{GRANTS_MAX, NAME_BYTES_MAX, Said};
use super::keys::{KeySource, Place};
use super::*;
use crate::auth::{Room, User};
use crate::permissions::{Act, Permissions};
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";
/// When these tests play, in seconds from 1970.
const NOW_S: u64 = 1_800_000_000;

fn settings() -> Settings {
    Settings {
        token_bytes_max: 4_096,
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway_ms: 5_000,
        expiry_required: true,
        grace_ms: 1_000,
        user_claim: "sub".to_owned(),
        rooms_max: 3,
        room_name_bytes_max: 20,
        keys: Vec::new(),
        key_set: None,
        refresh_ms: 1_000,
        retry_ms: 1_000,
    }
}

fn secret(kid: Option<&str>, algorithm: Algorithm, bytes: &[u8]) -> KeySource {
    KeySource { kid: kid.map(str::to_owned), algorithm, until_s: None, place: Place::Secret(bytes.to_vec()) }
}

fn tokens(settings: Settings, keys: &[KeySource]) -> Tokens {
    let tokens = Tokens::new(settings);
    tokens.set_named_keys(keys.iter().map(|key| key.read().expect("a good key")).collect());
    tokens.set_wall_clock(NOW_S * 1_000, Time::default());
    tokens
}

fn plain() -> Tokens {
    tokens(settings(), &[secret(None, Algorithm::Hs256, SECRET)])
}

fn sign(head: &Value, payload: &str, key: &[u8]) -> String {
    let hmac = head["alg"].as_str().and_then(Algorithm::parse).and_then(Algorithm::hmac);
    let signed =
        [head.to_string().as_str(), payload].map(|part| BASE64URL_NOPAD.encode(part.as_bytes())).join(".");
    let key = ring::hmac::Key::new(hmac.unwrap_or(ring::hmac::HMAC_SHA256), key);
    let signature = ring::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
}

/// A token with these claims besides a user and an expiry; `null` takes one away.
fn with(claims: Value) -> String {
    let mut all = json!({"sub": "7", "exp": NOW_S + 60});
    for (name, value) in claims.as_object().expect("an object") {
        all[name] = value.clone();
    }
    sign(&json!({"alg": "HS256"}), &all.to_string(), SECRET)
}

fn check(tokens: &Tokens, token: &str) -> Result<String, TokenFault> {
    tokens.check(token, Time::default()).map(|vouched| vouched.user.name.to_string())
}

#[test]
fn a_good_token_says_who_one_is_and_what_one_may_do() {
    let claims = json!({
        "rooms": ["a", {"namespace": "/chat", "rooms": ["räume"]}],
        "permissions": ["join:a:*", {"namespace": "/staff", "allow": ["connect"]}, {"namespace": "/guild/*", "rooms": "*", "allow": ["publish"]}],
        "roles": ["admin"],
        "limits": {"messages_per_second_max": 5, "bytes_per_second_max": 9, "connections_max": 2, "else": 1},
        "nbf": NOW_S, "iat": 3.5, "whatever": {"a": [1]},
    });
    let Vouched { user, rooms } = plain().check(&with(claims), Time::default()).expect("it is good");
    let room = |namespace: &str, name: &str| Room { namespace: namespace.into(), name: name.into() };
    assert_eq!((&*user.name, user.expires_at_s), ("7", NOW_S + 60));
    assert_eq!(rooms, [room("/", "a"), room("/chat", "räume")]);
    let allows = |namespace, room, act| Permissions::default().allow(&user.actor(), namespace, room, act);
    assert!(allows("/", "a:1", Act::Join) && !allows("/", "a:1", Act::Publish));
    assert!(allows("/guild/1", "x", Act::Publish));
    assert_eq!(user.actor().roles, [Box::<str>::from("admin")]);
    let granted = user.granted.expect("there is more");
    assert_eq!((granted.messages_per_second_max, granted.connections_max), (Some(5), Some(2)));
    assert_eq!(granted.bytes_per_second_max, Some(9));
    let bare = plain().check(&with(json!({})), Time::default()).expect("it is good").user;
    assert_eq!(bare, User { expires_at_s: NOW_S + 60, ..User::named("7") });
    assert_eq!(check(&plain(), &with(json!({"sub": 12}))), Ok("12".to_owned()), "some number their users");
}

#[test]
fn time_is_kept_to_with_some_leeway() {
    let tokens = plain();
    let check = |claims| check(&tokens, &with(claims)).map(|_| ());
    assert_eq!(check(json!({"exp": NOW_S - 4})), Ok(()));
    assert_eq!(check(json!({"exp": NOW_S as f64 - 4.5})), Ok(()), "a date may have fractions");
    assert_eq!(check(json!({"exp": NOW_S - 5})), Err(TokenFault::Expired));
    assert_eq!(check(json!({"exp": -1e300})), Err(TokenFault::Expired));
    assert_eq!(check(json!({"exp": 1e300})), Ok(()));
    assert_eq!(check(json!({"exp": null})), Err(TokenFault::Claims), "one that never expires");
    assert_eq!(check(json!({"exp": (NOW_S + 60).to_string()})), Err(TokenFault::Claims), "a text is no date");
    assert_eq!(check(json!({"nbf": NOW_S + 5})), Ok(()));
    assert_eq!(check(json!({"nbf": NOW_S + 6})), Err(TokenFault::NotYet));
    tokens.set_wall_clock((NOW_S + 100) * 1_000, Time::default());
    assert_eq!(check(json!({})), Err(TokenFault::Expired), "the clock was put right");
    let lax = self::tokens(
        Settings { expiry_required: false, ..settings() },
        &[secret(None, Algorithm::Hs256, SECRET)],
    );
    let vouched = lax.check(&with(json!({"exp": null})), Time::default()).expect("it need not expire");
    assert_eq!(vouched.user.expires_at_s, u64::MAX);
    assert_eq!(tokens.good_until_ms(NOW_S), NOW_S * 1_000 + 6_000);
    assert_eq!(tokens.good_until_ms(u64::MAX), u64::MAX);
}

#[test]
fn issuer_and_audience_have_to_be_ours() {
    let named = |issuers: &[&str], audiences: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let settings = Settings { issuers: owned(issuers), audiences: owned(audiences), ..settings() };
        tokens(settings, &[secret(None, Algorithm::Hs256, SECRET)])
    };
    let ours = named(&["me", "you"], &["here"]);
    let check = |tokens: &Tokens, claims| check(tokens, &with(claims)).map(|_| ());
    assert_eq!(check(&ours, json!({"iss": "you", "aud": ["there", "here"]})), Ok(()));
    assert_eq!(check(&ours, json!({"iss": "me", "aud": "here"})), Ok(()));
    assert_eq!(check(&ours, json!({"iss": "she", "aud": "here"})), Err(TokenFault::Issuer));
    assert_eq!(check(&ours, json!({"aud": "here"})), Err(TokenFault::Issuer));
    assert_eq!(check(&ours, json!({"iss": "me", "aud": "there"})), Err(TokenFault::Audience));
    assert_eq!(check(&ours, json!({"iss": "me", "aud": []})), Err(TokenFault::Audience));
    assert_eq!(check(&ours, json!({"iss": "me"})), Err(TokenFault::Audience));
    assert_eq!(check(&named(&[], &[]), json!({"iss": "she"})), Ok(()));
    assert_eq!(
        check(&named(&[], &[]), json!({"aud": "here"})),
        Err(TokenFault::Audience),
        "for somebody else"
    );
}

#[test]
fn a_key_is_good_for_one_algorithm_and_until_its_date() {
    let old = KeySource { until_s: Some(NOW_S + 10), ..secret(Some("old"), Algorithm::Hs256, &[1; 32]) };
    let keys =
        [old, secret(Some("new"), Algorithm::Hs512, &[2; 64]), secret(None, Algorithm::Hs384, &[3; 48])];
    let tokens = tokens(settings(), &keys);
    let payload = json!({"sub": "7", "exp": NOW_S + 60}).to_string();
    let check = |head: Value, key: &[u8]| check(&tokens, &sign(&head, &payload, key)).map(|_| ());
    assert_eq!(check(json!({"alg": "HS256", "kid": "old"}), &[1; 32]), Ok(()));
    assert_eq!(check(json!({"alg": "HS512", "kid": "new", "typ": "at+jwt"}), &[2; 64]), Ok(()));
    assert_eq!(check(json!({"alg": "HS384"}), &[3; 48]), Ok(()));
    assert_eq!(check(json!({"alg": "HS384", "kid": "unheard"}), &[3; 48]), Ok(()), "a key without a name");
    assert_eq!(check(json!({"alg": "HS512"}), &[2; 64]), Ok(()), "a token without a name");
    assert_eq!(check(json!({"alg": "HS256", "kid": "new"}), &[2; 64]), Err(TokenFault::Algorithm));
    assert_eq!(check(json!({"alg": "HS512", "kid": "new"}), &[1; 64]), Err(TokenFault::Signature));
    assert_eq!(
        check(json!({"alg": "HS256", "kid": "old", "crit": ["exp"]}), &[1; 32]),
        Err(TokenFault::Malformed)
    );
    for alg in ["none", "None", "hs256", "", "PS256"] {
        assert_eq!(check(json!({"alg": alg}), &[1; 32]), Err(TokenFault::Algorithm), "{alg}");
    }
    tokens.set_wall_clock((NOW_S + 10) * 1_000, Time::default());
    assert_eq!(
        check(json!({"alg": "HS256", "kid": "old"}), &[1; 32]),
        Err(TokenFault::Algorithm),
        "its time is over"
    );
    for (algorithm, length) in [(Algorithm::Hs256, 31), (Algorithm::Hs384, 47), (Algorithm::Hs512, 63)] {
        let fault = secret(None, algorithm, &vec![b'x'; length]).read().expect_err("too short");
        assert!(!fault.to_string().contains("xx"), "it is not shown");
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let tokens = plain();
    let good = with(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    let [head, payload, signature] = parts.as_slice() else { panic!("three parts") };
    for (token, fault) in [
        (String::new(), TokenFault::Malformed),
        ("a.b".to_owned(), TokenFault::Malformed),
        (format!("{head}.{payload}."), TokenFault::Signature),
        (format!("{head}.{payload}"), TokenFault::Malformed),
        (format!("{good}."), TokenFault::Signature),
        (format!("{good}.{signature}.{signature}"), TokenFault::Signature),
        (format!("{good}="), TokenFault::Malformed),
        (format!(" {good}"), TokenFault::Malformed),
        (format!("{head}.{payload}.{}", signature.replace(|_| true, "A")), TokenFault::Signature),
        (format!("{head}.{}.{signature}", payload.to_uppercase()), TokenFault::Signature),
        ("é.é.é".to_owned(), TokenFault::Malformed),
        ("a".repeat(4_097), TokenFault::TooLong),
        (sign(&json!({"kid": "x"}), "{}", SECRET), TokenFault::Malformed),
        (sign(&json!(["HS256"]), "{}", SECRET), TokenFault::Signature),
    ] {
        let found = check(&tokens, &token).map(|_| ());
        // serde takes an array for a struct: then there is no right signature, which is as good.
        assert!(
            found == Err(fault) || (fault == TokenFault::Signature && found.is_err()),
            "{token}: {found:?}"
        );
    }
    for at in 0..good.len() {
        if let Some(cut) = good.get(..at) {
            assert!(check(&tokens, cut).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn claims_are_bounded_and_of_their_types() {
    let tokens = plain();
    let names = |count: usize| (0..count).map(|name| name.to_string()).collect::<Vec<_>>();
    let grants = |count: usize| names(count).iter().map(|name| format!("join:{name}")).collect::<Vec<_>>();
    for good in [
        json!({"rooms": ["a", "b", "c"]}),
        json!({"rooms": null, "roles": []}),
        json!({"sub": "é".repeat(NAME_BYTES_MAX / 2)}),
        json!({"permissions": grants(GRANTS_MAX), "roles": names(GRANTS_MAX)}),
    ] {
        check(&tokens, &with(good)).expect("it is good");
    }
    for wrong in [
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"sub": "a\u{1}"}),
        json!({"sub": "é".repeat(NAME_BYTES_MAX / 2 + 1)}),
        json!({"sub": ["7"]}),
        json!({"sub": -1}),
        json!({"rooms": "a"}),
        json!({"rooms": ["a", "b", "c", "d"]}),
        json!({"rooms": ["a".repeat(21)]}),
        json!({"rooms": ["\u{0}"]}),
        json!({"rooms": [{"namespace": "/a", "rooms": ["a", "b"]}, {"namespace": "/b", "rooms": ["a", "b"]}]}),
        json!({"rooms": [{"namespace": "/a"}]}),
        json!({"rooms": [{"namespace": "a", "rooms": ["a"]}]}),
        json!({"rooms": [{"namespace": "/*", "rooms": ["a"]}]}),
        json!({"rooms": [{"namespace": "/".repeat(201), "rooms": ["a"]}]}),
        json!({"permissions": ["connect:a"]}),
        json!({"permissions": [{"allow": ["join"]}]}),
        json!({"permissions": ["join"]}),
        json!({"permissions": [{"rooms": "a"}]}),
        json!({"permissions": [{"rooms": "a", "allow": ["fly"]}]}),
        json!({"permissions": grants(GRANTS_MAX + 1)}),
        json!({"roles": names(GRANTS_MAX + 1)}),
        json!({"roles": [7]}),
        json!({"limits": {"connections_max": -1}}),
        json!({"nbf": "now"}),
        json!({"aud": 7}),
    ] {
        assert_eq!(check(&tokens, &with(wrong.clone())), Err(TokenFault::Claims), "{wrong}");
    }
    for payload in [
        "",
        "7",
        "[]",
        "null",
        "{",
        "{\"sub\":\"7\",\"exp\":9e9,\"sub\":\"8\"}",
        "{\"sub\":\"7\",\"exp\":9e9} x",
    ] {
        let token = sign(&json!({"alg": "HS256"}), payload, SECRET);
        assert_eq!(check(&tokens, &token), Err(TokenFault::Claims), "{payload}");
    }
}

#[test]
fn a_set_of_keys_is_read_as_far_as_it_is_understood() {
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let other = |name: &str, value: Value| {
        let mut key = ed.clone();
        key[name] = value;
        key
    };
    let set = json!({"keys": [
        ed, other("use", json!("sig")), other("alg", json!("EdDSA")), other("alg", json!("Ed25519")),
        other("use", json!("enc")), other("alg", json!("RS256")), other("x", json!("AAAA")), other("crv", json!("X25519")),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"}, {"kty": "new"}, 7,
    ]});
    let keys = keys::read_set(set.to_string().as_bytes()).expect("some are good");
    assert_eq!(keys.len(), 4);
    assert!(keys.iter().all(|key| (key.kid(), key.algorithm()) == (Some("ed"), Algorithm::EdDsa)));
    for none in ["{}", "[]", "{\"keys\":[]}", "{\"keys\":[7]}", "<html>"] {
        keys::read_set(none.as_bytes()).expect_err("no key");
    }
    let tokens = Tokens::new(Settings { key_set: Some("http://there/".to_owned()), ..settings() });
    let token = sign(&json!({"alg": "EdDSA", "kid": "later"}), "{}", SECRET);
    assert_eq!(check(&tokens, &token), Err(TokenFault::UnknownKey));
}

#[test]
fn an_answer_of_the_backend_means_what_a_token_means() {
    let tokens = Tokens::new(settings());
    let read = |answer: Value| tokens.read_answer(answer.to_string().as_bytes(), NOW_S * 1_000);
    let vouched = |answer: Value| match read(answer.clone()) {
        Ok(Said::User(vouched)) => vouched,
        other => panic!("{answer}: {other:?}"),
    };
    let bare = vouched(json!({"user": "7", "exp": "not looked at", "more": {}}));
    assert_eq!((bare.user, bare.rooms.len()), (User::named("7"), 0));
    let full = vouched(json!({
        "user": 7, "expires_in_s": 90.5, "rooms": ["a"], "permissions": ["join:b"], "roles": ["admin"],
        "limits": {"messages_per_second_max": 5},
    }));
    assert_eq!((&*full.user.name, full.user.expires_at_s), ("7", NOW_S + 91));
    assert_eq!(full.rooms, [Room { namespace: "/".into(), name: "a".into() }]);
    let actor = full.user.actor();
    assert!(Permissions::default().allow(&actor, "/", "b", Act::Join));
    assert!(!Permissions::default().allow(&actor, "/", "c", Act::Join));

    assert!(matches!(read(json!({"user": null})), Ok(Said::Nobody)));
    let refusal = |answer: Value| match read(answer.clone()) {
        Ok(Said::Refused(reason)) => reason.map(String::from),
        other => panic!("{answer}: {other:?}"),
    };
    assert_eq!(refusal(json!({"refuse": "no", "user": "7"})), Some("no".to_owned()));
    assert_eq!(refusal(json!({"refuse": ""})), None);
    let long = refusal(json!({"refuse": "ä".repeat(100)})).expect("a reason");
    assert_eq!(long, "ä".repeat(61), "it fits a close frame");
}

#[test]
fn an_answer_that_is_none_is_a_failure() {
    let tokens = Tokens::new(settings());
    let check = |answer: &str| {
        let read = tokens.read_answer(answer.as_bytes(), NOW_S * 1_000);
        assert!(read.is_err(), "{answer}: {read:?}");
    };
    for answer in ["", "null", "[]", "{}", "<html>", "{\"user\":\"7\"", "{\"user\":\"7\"} {}", "\"7\""] {
        check(answer);
    }
    for answer in [
        json!({"user": true}),
        json!({"user": ""}),
        json!({"user": "a\u{7}"}),
        json!({"user": "x".repeat(NAME_BYTES_MAX + 1)}),
        json!({"user": "7", "expires_in_s": 0}),
        json!({"user": "7", "expires_in_s": "1h"}),
        json!({"user": "7", "rooms": ["a", "b", "c", "d"]}),
        json!({"user": "7", "permissions": ["nonsense"]}),
        json!({"user": "7", "roles": vec!["a"; GRANTS_MAX + 1]}),
        json!({"user": "7", "limits": []}),
        json!({"user": null, "rooms": ["a"]}),
        json!({"user": null, "permissions": []}),
        json!({"refuse": true}),
    ] {
        check(&answer.to_string());
    }
    check(r#"{"user":"7","user":"8"}"#);
}

#[test]
fn what_has_the_form_of_a_token_is_for_throng_where_there_are_keys() {
    let source = KeySource {
        kid: None,
        algorithm: Algorithm::Hs256,
        until_s: None,
        place: Place::Secret(SECRET.to_vec()),
    };
    let with_key = Tokens::new(Settings { keys: vec![source], ..settings() });
    // {"alg":"none"}
    let form = "eyJhbGciOiJub25lIn0.e30.";
    assert!(with_key.judges(form) && !Tokens::new(settings()).judges(form));
    for text in ["", "user:7", "a.b.c", "eyJhbGciOiJub25lIn0", "e30.e30.e30"] {
        assert!(!with_key.judges(text), "{text}");
    }
}

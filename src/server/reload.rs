//! SIGHUP: the configuration is read anew, what can change while clients are connected changes, and the rest is named. Either all that
//! can change does, or, when anything of it is wrong, nothing.

use super::{
    Failure, access, answer_settings, api_settings, bridge_bounds, certificate_files, rules, settings,
    token_settings,
};
use crate::bus::mailbox::Mail;
use crate::config::{Config, Merged, Problem};
use crate::control::Control;
use crate::log::Log;
use crate::message::ShardId;
use crate::reactor::tls::Tls;
use crate::shard::Settings;
use crate::token::{Tokens, refresh};
use std::sync::Arc;
use tokio::sync::watch;

/// Reads the configuration as it was read at the start.
pub type Again<'r> = &'r dyn Fn() -> Result<Config, Vec<Problem>>;

/// What a running server goes by, and what has to be told when that changes.
pub(super) struct Reload<'r> {
    pub(super) again: Again<'r>,
    pub(super) log: &'r Log,
    /// What runs: of the configurations that were read, what could take effect.
    pub(super) config: Config,
    pub(super) control: Arc<Control>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) shards: usize,
    pub(super) summary_ms: watch::Sender<u32>,
}

impl Reload<'_> {
    /// What runs.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Reads the configuration and lets it take effect as far as it can, and logs what came of it. Certificates and keys are read again
    /// in any case. Takes as long as their files, and a set of keys at a URL at most some seconds; who does not wait for that has changed nothing.
    pub(super) async fn reload(&mut self) {
        let merged = match (self.again)().and_then(|new| self.config.merge(&new)) {
            Ok(merged) => merged,
            Err(problems) => return refuse(&problems),
        };
        if let Err(failure) = self.apply(&merged).await {
            return refuse(&[failure]);
        }
        // What comes of it is heard at the more talkative of both levels.
        let level = merged.config.log.level;
        if level as u8 > self.config.log.level as u8 {
            self.log.set_level(level);
        }
        for change in &merged.applied {
            tracing::info!(key = change.key, old = change.old, new = change.new, "a setting has changed");
        }
        for change in &merged.pending {
            tracing::warn!(
                key = change.key,
                old = change.old,
                new = change.new,
                "a setting has changed and needs a restart"
            );
        }
        tracing::info!(
            changed = merged.applied.len(),
            needing_restart = merged.pending.len(),
            "the configuration was loaded anew, with certificates and keys"
        );
        self.log.set_level(level);
        self.config = merged.config;
    }

    /// # Errors
    /// What could not be had. Then nothing has changed.
    async fn apply(&self, merged: &Merged) -> Result<(), Failure> {
        let Merged { config, applied, .. } = merged;
        let certificate = self.tls.as_ref().map(|_| certificate_files(config).load()).transpose();
        let certificate = certificate.map_err(Failure::Tls)?;
        let token_settings = token_settings(config);
        let named = refresh::read_keys(&token_settings.keys).map_err(Failure::Keys)?;
        let has_new_rules = applied.iter().any(|change| change.key.contains("limits."));
        let rules = has_new_rules.then(|| rules(config, self.shards)).transpose()?;
        let mut of_set = None;
        if let Some(place) = &token_settings.key_set {
            match refresh::read_set_at(place).await {
                Ok(keys) => of_set = Some(keys),
                // Who has the set may be away for a while, as at the start.
                Err(fault) => {
                    tracing::warn!(%fault, "the set of keys could not be read: what is known of it stays");
                    self.tokens.refresh_failures.add(1);
                }
            }
        }
        // From here on nothing fails.
        if let (Some(tls), Some(certificate)) = (&self.tls, certificate) {
            tls.show(certificate);
        }
        self.tokens.replace(token_settings, named, of_set);
        if let Some(rules) = rules {
            self.control.gate.set_rules(rules);
        }
        self.control.api.set(api_settings(config));
        if let Some(bridge) = &self.control.bridge {
            bridge.set_bounds(bridge_bounds(config));
        }
        if let Some(backend) = &self.control.backend {
            backend.answers.store(Arc::new(answer_settings(config)));
        }
        self.summary_ms.send_replace(config.log.summary_ms);
        let access = Arc::new(access(config, Some(&self.tokens)));
        let settings = settings(config, self.shards, self.control.gate.sockets_max());
        let settings = Arc::new(Settings { access, ..settings });
        for id in 0..self.shards {
            self.control.bus.post(id as ShardId, Mail::Settings(settings.clone()));
        }
        Ok(())
    }
}

/// Nothing has changed, for these reasons.
fn refuse<P: std::fmt::Display>(problems: &[P]) {
    for problem in problems {
        tracing::warn!(%problem, "the configuration is wrong");
    }
    tracing::warn!(problems = problems.len(), "nothing was loaded anew: all is what it was");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Args, Kind, Reloaded, SETTINGS};
    use crate::token::keys::Place;

    /// Everything else that a change needs to be allowed.
    const BASE: &[&str] = &[
        "limits.bytes_per_second_max=10",
        "limits.messages_per_second_max=10",
        "limits.trusted_proxies=10.0.0.0/8",
        "limits.connections_per_ip_max=5",
        "limits.connections_per_user_max=5",
        "limits.handshakes_per_ip_max=5",
        "tls.certificate_file=cert.pem",
        "tls.key_file=key.pem",
        "auth.callout=true",
        "auth.secret=a secret that has more than 32 bytes in it",
        "backend.url=http://127.0.0.1:1",
        "socketio.cors_origins=https://a.example",
        "redis.urls=redis://127.0.0.1:1",
        "redis.master=one",
    ];

    /// What a setting may be set to in its turn: the first that is allowed and is not what it was.
    const VALUES: &[&str] = &[
        "true",
        "false",
        "off",
        "1",
        "3",
        "30",
        "300",
        "3000",
        "60000",
        "70000",
        "5MiB",
        "2GiB",
        "127.0.0.1:9",
        "192.0.2.0/24",
        "https://b.example",
        "/b/",
        "/b",
        "name",
        "redis://127.0.0.1:2",
        "http://127.0.0.1:2",
        "another secret that has more than 32 bytes",
        "0123456789abcdef0123456789abcdef",
    ];

    /// The key of [`BASE`].
    fn secret() -> Place {
        Place::Secret(b"a secret that has more than 32 bytes in it".to_vec())
    }

    fn config(sets: &[&str]) -> Result<Config, Vec<Problem>> {
        let set = sets.iter().map(|set| (*set).to_owned()).collect();
        Config::load(&Args { set, ..Args::default() }, [])
    }

    /// All that a reload hands to what runs.
    fn parts(config: &Config) -> String {
        let tokens = Arc::new(Tokens::new(token_settings(config)));
        let rules = rules(config, 2).expect("there are descriptors");
        let access = access(config, Some(&tokens));
        let of_shards = (settings(config, 2, rules.sockets_max), access, rules);
        let of_control = (api_settings(config), token_settings(config), certificate_files(config));
        let of_others = (bridge_bounds(config), answer_settings(config));
        // Which do not show themselves.
        let secrets: Vec<bool> =
            token_settings(config).keys.iter().map(|key| key.place == secret()).collect();
        format!("{:?}", (of_shards, of_control, of_others, secrets, &config.drain, &config.log))
    }

    /// The configuration with this setting, or the first value that may take its place.
    fn changed(key: &str, kind: Kind, base: &Config) -> Config {
        let words: &[&str] = match kind {
            Kind::Word(words) | Kind::Words(words) => words,
            _ => &[],
        };
        let others = words.iter().chain(VALUES).filter_map(|value| {
            let set = format!("{key}={value}");
            let changed = config(&[BASE, &[set.as_str()]].concat()).ok()?;
            let merged = base.merge(&changed).ok()?;
            (merged.applied.len() + merged.pending.len() == 1).then_some(changed)
        });
        others.into_iter().next().unwrap_or_else(|| panic!("{key} has no value to change to"))
    }

    #[test]
    fn every_setting_takes_effect_or_is_named() {
        let base = config(BASE).unwrap_or_else(|problems| panic!("{problems:?}"));
        let before = parts(&base);
        let mut wrong = Vec::new();
        for setting in SETTINGS {
            let merged = base.merge(&changed(setting.key, setting.kind, &base)).expect("it agrees");
            let named =
                |changes: &[crate::config::Change]| changes.iter().any(|change| change.key == setting.key);
            let has_changed = parts(&merged.config) != before;
            let (applied, pending) = (named(&merged.applied), named(&merged.pending));
            let expected = match setting.reloaded {
                Reloaded::No => (false, true, false),
                Reloaded::Yes | Reloaded::WhileOn => (true, false, true),
            };
            if (applied, pending, has_changed) != expected {
                wrong.push(format!("{}: {:?}", setting.key, (applied, pending, has_changed)));
            }
        }
        assert!(wrong.is_empty(), "applied, pending, and whether anything of it runs:\n{}", wrong.join("\n"));
    }

    #[test]
    fn what_is_off_at_the_start_is_switched_on_by_a_restart() {
        let base = Config::default();
        for (key, value) in [("limits.connections_per_ip_max", "5"), ("limits.connections_per_user_max", "5")]
        {
            let on = config(&[&format!("{key}={value}")]).expect("it is allowed");
            for (old, new) in [(&base, &on), (&on, &base)] {
                let merged = old.merge(new).expect("it agrees");
                assert_eq!((merged.applied.len(), merged.pending.len()), (0, 1), "{key}");
                assert_eq!(merged.pending[0].key, key);
                assert_eq!(parts(&merged.config), parts(old), "{key}");
            }
        }
    }

    #[test]
    fn every_list_takes_effect_or_is_named() {
        let file = std::env::temp_dir().join(format!("throng-reload-{}.toml", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&file, text).expect("a file of ours");
            let args = Args { config: Some(file.clone()), ..Args::default() };
            Config::load(&args, []).unwrap_or_else(|problems| panic!("{problems:?}"))
        };
        let base = read("[backend]\nurl = \"http://127.0.0.1:1\"\n");
        let before = parts(&base);
        let check = |heading: &str, table: &str, is_applied: bool| {
            let new = read(&format!("{heading}\n{table}\n[backend]\nurl = \"http://127.0.0.1:1\"\n"));
            let merged = base.merge(&new).expect("it agrees");
            let keys =
                |changes: &[crate::config::Change]| changes.iter().map(|it| it.key).collect::<Vec<_>>();
            let expected = if is_applied { (vec![heading], vec![]) } else { (vec![], vec![heading]) };
            assert_eq!((keys(&merged.applied), keys(&merged.pending)), expected);
            assert_eq!(parts(&merged.config) != before, is_applied, "{heading}");
            let again = merged.config.merge(&new).expect("it agrees");
            assert_eq!(again.applied, [], "{heading}");
        };
        check("[[limits.events]]", "event = \"bid\"\ncount = 5\nwindow_ms = 100\nper = \"user\"", true);
        check("[[webhooks.events]]", "event = \"bid\"", false);
        check("[[namespaces]]", "name = \"/a\"", false);
        check("[[routes]]", "on = \"say\"\nack = true", true);
        check("[[api.keys]]", "name = \"a\"\nkey = \"0123456789abcdef\"\nscopes = [\"read\"]", true);
        check("[[auth.keys]]", "algorithm = \"ES256\"\nfile = \"a.pem\"", true);
        check("[[permissions]]", "rooms = \"a:*\"\nallow = [\"join\"]", true);
        check("[[rooms]]", "name = \"a:*\"\nwindow_ms = 50\nbatch_max = 3", false);
        check("[[redis.channels]]", "name = \"news\"\npublish = { all = true, event = \"e\" }", false);
        std::fs::remove_file(&file).expect("it is ours");
    }

    #[test]
    fn what_can_change_must_agree_with_what_cannot() {
        let problems = |base: &[&str], new: &[&str]| {
            let (base, new) = (config(base).expect("it is right"), config(new).expect("it is right"));
            let problems = base.merge(&new).expect_err("they do not agree");
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let told = problems(
            &["limits.receive_bytes_max=2MiB"],
            &["limits.message_bytes_max=3MiB", "limits.receive_bytes_max=4MiB"],
        );
        assert!(told.contains("limits.receive_bytes_max = \"2MiB\""), "{told}");
        let told =
            problems(&[], &["auth.required=true", "auth.callout=true", "backend.url=http://127.0.0.1:1"]);
        assert!(told.contains("auth.required"), "{told}");
    }
}

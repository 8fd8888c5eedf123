//! The CAs of the operator. A CA is exchanged in three steps, so that nobody ever meets a certificate that it does not trust:
//! the next one is trusted, then it signs, then the one before is not trusted any more. Pure; time is given.

use crate::certificates::{Authority, CertificateError, LEAF_LIFE};
use crate::names::RENEW;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// The annotation by which a person asks for another CA now.
pub const ROTATE: &str = "sluice.dev/rotate";
/// The annotation of a CA that is trusted and does not sign yet: when it will.
const SIGN: &str = "sluice.dev/sign-at";
/// The annotation of a CA that does not sign any more: until when it is trusted.
const TRUST: &str = "sluice.dev/trust-until";

/// All agents have read a bundle after this: kubelets look at Secrets every minute or so, agents every two seconds.
const SPREAD: SignedDuration = SignedDuration::from_mins(30);
/// A CA signs for so long; it is good for twice that.
const TERM: SignedDuration = SignedDuration::from_hours(5 * 365 * 24);

/// The CAs: one that signs, and at most one more on each side of it.
#[derive(Debug)]
pub struct Keyring {
    /// It signs.
    pub signing: Authority,
    /// Until when.
    renew: Timestamp,
    next: Option<(Authority, Timestamp)>,
    /// A certificate alone, and until when it is trusted.
    before: Option<(String, Timestamp)>,
}

impl Keyring {
    /// The first one.
    ///
    /// # Errors
    /// If no CA can be made.
    pub fn create(now: Timestamp) -> Result<Self, CertificateError> {
        Ok(Self { signing: Authority::create()?, renew: later(now, TERM), next: None, before: None })
    }

    /// What is stored.
    ///
    /// # Errors
    /// It is none.
    pub fn stored(secret: &Secret, now: Timestamp) -> Result<Self, CertificateError> {
        let text = |key: &str| {
            let data = secret.data.as_ref()?.get(key)?;
            String::from_utf8(data.0.clone()).ok()
        };
        let time = |key: &str| secret.annotations().get(key).and_then(|t| t.parse::<Timestamp>().ok());
        let pair = |certificate: &str, key: &str| {
            Authority::stored(&text(certificate).unwrap_or_default(), &text(key).unwrap_or_default())
        };
        let next = match text("next.crt") {
            Some(_) => Some((pair("next.crt", "next.key")?, time(SIGN).unwrap_or(now))),
            None => None,
        };
        Ok(Self {
            signing: pair("tls.crt", "tls.key")?,
            // One of a release that did not say it, or of a person: it is good for years.
            renew: time(RENEW).unwrap_or_else(|| later(now, TERM)),
            next,
            before: text("before.crt").map(|c| (c, time(TRUST).unwrap_or(now))),
        })
    }

    /// One step on, if it is time for one, or if somebody asks. Whether there was one.
    ///
    /// # Errors
    /// If no CA can be made.
    pub fn step(&mut self, now: Timestamp, is_asked: bool) -> Result<bool, CertificateError> {
        if self.before.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.before = None;
        } else if self.next.as_ref().is_some_and(|(_, at)| *at <= now) {
            let Some((next, _)) = self.next.take() else { return Ok(false) };
            let old = std::mem::replace(&mut self.signing, next);
            let life = SignedDuration::try_from(LEAF_LIFE).unwrap_or(SignedDuration::MAX);
            self.before = Some((old.certificate, later(now, life)));
            self.renew = later(now, TERM);
        } else if self.next.is_none() && self.before.is_none() && (is_asked || self.renew <= now) {
            self.next = Some((Authority::create()?, later(now, SPREAD)));
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// The certificates of all CAs that are trusted, PEM.
    pub fn bundle(&self) -> String {
        let others = self.next.iter().map(|(n, _)| &n.certificate).chain(self.before.iter().map(|(c, _)| c));
        others.fold(self.signing.certificate.clone(), |all, one| all + one)
    }

    /// Which CAs there are, and which one signs.
    pub fn id(&self) -> String {
        blake3::hash(self.bundle().as_bytes()).to_hex()[..16].to_owned()
    }

    /// In words, for the log.
    pub fn stage(&self) -> &'static str {
        match (&self.next, &self.before) {
            (Some(_), _) => "the next CA is trusted, and signs soon",
            (None, Some(_)) => "the next CA signs, and the one before is trusted for a week",
            (None, None) => "one CA is trusted",
        }
    }

    /// Writes it into the Secret.
    pub fn store(&self, secret: &mut Secret) {
        let mut data = BTreeMap::from([
            ("tls.crt".to_owned(), self.signing.certificate.clone()),
            ("tls.key".to_owned(), self.signing.key.clone()),
        ]);
        let mut times = BTreeMap::from([(RENEW, self.renew)]);
        if let Some((next, at)) = &self.next {
            data.insert("next.crt".into(), next.certificate.clone());
            data.insert("next.key".into(), next.key.clone());
            times.insert(SIGN, *at);
        }
        if let Some((certificate, until)) = &self.before {
            data.insert("before.crt".into(), certificate.clone());
            times.insert(TRUST, *until);
        }
        let annotations = secret.annotations_mut();
        annotations.retain(|key, _| ![RENEW, SIGN, TRUST, ROTATE].contains(&key.as_str()));
        annotations.extend(times.into_iter().map(|(key, at)| (key.to_owned(), at.to_string())));
        let bytes = |text: String| k8s_openapi::ByteString(text.into_bytes());
        secret.data = Some(data.into_iter().map(|(k, v)| (k, bytes(v))).collect());
        secret.string_data = None;
    }
}

fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    /// As it is after having been written and read.
    fn read(ring: &Keyring, now: Timestamp) -> Keyring {
        let mut secret = Secret::default();
        ring.store(&mut secret);
        let again = Keyring::stored(&secret, now).unwrap();
        assert_eq!((again.bundle(), again.id(), again.stage()), (ring.bundle(), ring.id(), ring.stage()));
        again
    }

    /// What signs at any time was in the bundle for the whole of the time that a bundle takes to spread, and stays in it for
    /// as long as a leaf that it signed is good.
    #[test]
    fn a_leaf_is_trusted_by_whoever_meets_it() {
        let week = i64::try_from(LEAF_LIFE.as_secs() / 60).unwrap();
        let term = TERM.as_mins();
        let mut ring = Keyring::create(at(0)).unwrap();
        // (minute, who signs, who is trusted), whenever it changed.
        let mut history = vec![(0, ring.signing.certificate.clone(), ring.bundle())];
        let ends = 2 * term + 10 * week;
        let mut minute = 0;
        while minute < ends {
            minute += if minute % 7 == 0 { 11 } else { 17_000 };
            ring = read(&ring, at(minute));
            // Asked in the middle of a term too, and while an exchange is under way.
            let is_asked = (term / 2..term / 2 + 20_000).contains(&minute);
            while ring.step(at(minute), is_asked).unwrap() {
                history.push((minute, ring.signing.certificate.clone(), ring.bundle()));
            }
        }
        let signers: std::collections::BTreeSet<&String> = history.iter().map(|(_, s, _)| s).collect();
        assert!(signers.len() >= 3, "it was exchanged");
        let trusted = |minute: i64| history.iter().rev().find(|h| h.0 <= minute).map(|h| &h.2).unwrap();
        for (i, (since, signer, _)) in history.iter().enumerate() {
            let until = history.iter().skip(i).find(|h| h.1 != *signer).map_or(ends, |h| h.0);
            assert!(
                *since == 0 || trusted(since - 29).contains(signer.as_str()),
                "nobody knew it at {since}"
            );
            for late in [until, until + week / 2, until + week - 20] {
                assert!(trusted(late.min(ends)).contains(signer.as_str()), "at {late}, signed until {until}");
            }
        }
        let (_, _, last) = history.last().unwrap();
        assert_eq!(last.matches("BEGIN CERTIFICATE").count(), 1, "it ends with one");
    }

    #[test]
    fn what_somebody_asks_for_is_done_once() {
        let mut ring = Keyring::create(at(0)).unwrap();
        assert!(!ring.step(at(1), false).unwrap());
        assert!(ring.step(at(1), true).unwrap());
        assert!(!ring.step(at(2), true).unwrap(), "it is under way");
        let mut secret = Secret::default();
        secret.annotations_mut().insert(ROTATE.into(), "now".into());
        ring.store(&mut secret);
        assert!(!secret.annotations().contains_key(ROTATE));
    }

    #[test]
    fn a_secret_of_an_earlier_release_is_taken() {
        let first = Authority::create().unwrap();
        let mut secret = Secret::default();
        let bytes = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        secret.data = Some(BTreeMap::from([
            ("tls.crt".to_owned(), bytes(&first.certificate)),
            ("tls.key".to_owned(), bytes(&first.key)),
        ]));
        let ring = Keyring::stored(&secret, at(0)).unwrap();
        assert_eq!((ring.bundle(), ring.stage()), (first.certificate, "one CA is trusted"));
        secret.data = None;
        assert!(Keyring::stored(&secret, at(0)).unwrap_err().to_string().contains("delete its Secret"));
    }
}

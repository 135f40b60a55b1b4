//! How long certificates are still valid.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::check::Check;
use crate::message::format_date_time;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Leaves time to notice, and to get another certificate.
const MIN_VALIDITY_DAYS: u64 = 14;

/// When the certificates that a server presents expire.
pub(super) struct Expiry {
    /// The server's own certificate.
    server: SystemTime,
    /// The first of the other certificates. It may not be needed: servers also present certificates
    /// of authorities for clients with older trust stores.
    authority: Option<SystemTime>,
}

impl Expiry {
    pub(super) fn of(presented: &[CertificateDer<'_>]) -> Option<Self> {
        let not_after = |der: &CertificateDer<'_>| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            Some(SystemTime::from(certificate.validity().not_after.to_datetime()))
        };
        let (server, authorities) = presented.split_first()?;
        let authority = authorities.iter().filter_map(not_after).min();
        Some(Self { server: not_after(server)?, authority })
    }

    pub(super) fn check(&self, now: SystemTime) -> Check {
        let days =
            |end: SystemTime| end.duration_since(now).unwrap_or_default().as_secs() / DAY.as_secs();
        let soon = |end: &SystemTime| days(*end) < MIN_VALIDITY_DAYS;
        let left = days(self.server);
        let date = format_date_time(self.server);
        // A server's would have failed the handshake.
        if self.server <= now {
            return Check::finding("certificate", format!("has expired, on {date}"))
                .cost("every new connection fails")
                .remedy("renew it, and find out why it was not renewed automatically");
        }
        if soon(&self.server) {
            return Check::finding("certificate", format!("expires in {left} days, on {date}"))
                .cost("after that, every connection fails")
                .remedy("renew it, and find out why it was not renewed automatically");
        }
        if let Some(end) = self.authority.filter(soon) {
            let date = format_date_time(end);
            let what = format!("a certificate of an authority in its chain expires on {date}");
            return Check::hint("certificate", what)
                .cost("if this machine needs that certificate, every connection fails after that")
                .remedy("update the chain that the server presents");
        }
        Check::ok("certificate", format!("valid for another {left} days, until {date}"))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::doctor::check::Verdict;

    fn certificate(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn only_the_servers_own_certificate_is_a_finding() {
        let now = SystemTime::UNIX_EPOCH + 50 * 365 * DAY; // 2019-12-20
        let verdict = |chain: &[CertificateDer<'_>]| Expiry::of(chain).unwrap().check(now).verdict;
        assert_eq!(verdict(&[certificate(2020), certificate(2030)]), Verdict::Finding);
        assert_eq!(verdict(&[certificate(2030), certificate(2020)]), Verdict::Hint);
        assert_eq!(verdict(&[certificate(2030), certificate(2031)]), Verdict::Ok);
        assert!(Expiry::of(&[b"no certificate"[..].into()]).is_none());
    }
}

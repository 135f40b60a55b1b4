//! How long certificates are still valid.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::check::Check;
use crate::message::format_date_time;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Leaves time to notice, and to get another certificate.
const MIN_VALIDITY: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The earliest end of validity among the certificates that a server presented.
///
/// The handshake has succeeded, so a certificate that has expired already is not on the trusted
/// path: servers keep presenting old cross-signed intermediates.
pub(super) fn valid_until(
    certificates: &[CertificateDer<'_>],
    now: SystemTime,
) -> Option<SystemTime> {
    let ends = certificates.iter().filter_map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(SystemTime::from(certificate.validity().not_after.to_datetime()))
    });
    ends.filter(|end| *end > now).min()
}

/// Checks the validity of a server's certificates.
pub(super) fn check(valid_until: SystemTime, now: SystemTime) -> Check {
    let left = valid_until.duration_since(now).unwrap_or_default();
    let days = left.as_secs() / DAY.as_secs();
    let date = format_date_time(valid_until);
    if left < MIN_VALIDITY {
        Check::finding("certificate", format!("expires in {days} days, on {date}"))
            .cost("after that, every connection fails")
            .remedy("renew it, and find out why it was not renewed automatically")
    } else {
        Check::ok("certificate", format!("valid for another {days} days, until {date}"))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn first_certificate_to_expire_counts() {
        let now = SystemTime::UNIX_EPOCH + 50 * 365 * DAY; // 2019-12-20
        let chain = [certificate(2031), certificate(2030), certificate(2019)];
        let until = valid_until(&chain, now).unwrap();
        assert_eq!(format_date_time(until), "2030-01-01T00:00:00Z");
        assert_eq!(valid_until(&[b"no certificate"[..].into()], now), None);
    }
}

//! Certificates that are trusted: a file, or the PEM text itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{AbsolutePath, Text, wanted};

/// Whom to trust for one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// A PEM file on the machine.
    File(AbsolutePath),
    /// One certificate at least, one line end at the end.
    Pem(String),
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
/// A bundle of a whole system's authorities is 250 KB; nobody writes more into a profile.
const LARGEST: usize = 256 << 10;

impl Text for Trust {
    const DESCRIPTION: &'static str = "A PEM file's absolute path, or the PEM text itself";
    const PATTERN: &'static str = "^(/[A-Za-z0-9/._@+,=~-]*|\\s*-----BEGIN CERTIFICATE-----\\s[A-Za-z0-9+/=\\s-]*-----END CERTIFICATE-----\\s*)$";
    const EXAMPLES: &'static [&'static str] = &["/etc/ssl/harbor-ca.pem"];

    fn parse(text: &str) -> Result<Self, String> {
        let what = "a PEM file's absolute path, or a text that starts with `-----BEGIN CERTIFICATE-----`";
        if text.starts_with('/') {
            return AbsolutePath::parse(text).map(Self::File);
        }
        if !text.trim_start().starts_with("-----") {
            return wanted(what, Err("got something else".to_owned()));
        }
        wanted(what, pem(text)).map(Self::Pem)
    }
}

/// The certificates of `text`, and nothing else.
fn pem(text: &str) -> Result<String, String> {
    if text.len() > LARGEST {
        return Err(format!("got {} bytes of at most {LARGEST}", text.len()));
    }
    let mut out = String::with_capacity(text.len());
    let mut inside: Option<String> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match (&mut inside, line) {
            (None, BEGIN) => inside = Some(String::new()),
            (Some(body), END) => {
                certificate(body)?;
                inside = None;
            }
            (Some(body), line) if !line.starts_with('-') => body.push_str(line),
            (_, line) if line.contains("PRIVATE KEY") => {
                return Err("got a private key: nobody needs one to trust".to_owned());
            }
            (None, line) if line.starts_with("-----BEGIN ") => {
                return Err("got PEM that is no certificate".to_owned());
            }
            (None, _) => return Err("got text outside of the certificates".to_owned()),
            (Some(_), _) => return Err("got a certificate without its end".to_owned()),
        }
        out.push_str(line);
        out.push('\n');
    }
    match inside {
        None => Ok(out),
        Some(_) => Err("got a certificate without its end".to_owned()),
    }
}

/// The certificates in a PEM file, whatever else people write into one.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if pem.len() > LARGEST {
        return Err(format!("has {} bytes of at most {LARGEST}", pem.len()));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|error| format!("is no PEM: {error}"))?;
    if found.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    let usable =
        |certificate: &CertificateDer<'static>| RootCertStore::empty().add(certificate.clone()).is_ok();
    if found.iter().all(usable) {
        Ok(found)
    } else {
        Err("holds a certificate that cannot be read".to_owned())
    }
}

/// Certificates and nothing else, for programs that take whatever is in a file.
#[must_use]
pub fn to_pem(certificates: &[CertificateDer]) -> String {
    let mut out = String::new();
    for certificate in certificates {
        out.push_str(BEGIN);
        let base64 = STANDARD.encode(certificate);
        for (index, c) in base64.chars().enumerate() {
            if index % 64 == 0 {
                out.push('\n');
            }
            out.push(c);
        }
        out.push('\n');
        out.push_str(END);
        out.push('\n');
    }
    out
}

/// Base64 of a DER sequence, whose first byte is 0x30.
fn certificate(base64: &str) -> Result<(), String> {
    let digits = base64.trim_end_matches('=');
    let sound = base64.len().is_multiple_of(4)
        && base64.len() - digits.len() <= 2
        && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    // A hundred characters are not even a key.
    if sound && digits.starts_with('M') && digits.len() > 100 {
        Ok(())
    } else {
        Err("got a certificate that is cut short or no base64".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_nothing_else() {
        let body = format!("MIIB{}\n{}", "A".repeat(60), "b+/9".repeat(16));
        let one = format!("{BEGIN}\n{body}\n{END}\n");
        let two = format!("{one}{one}");
        assert_eq!(Trust::parse(&one), Ok(Trust::Pem(one.clone())));
        assert_eq!(Trust::parse(&two.replace('\n', "\r\n  ")), Ok(Trust::Pem(two)));
        for (text, said) in [
            (format!("{BEGIN}\n{body}\n"), "without its end"),
            (format!("{one}trailing\n"), "outside"),
            (format!("{BEGIN}\n{body}!\n{END}\n"), "base64"),
            (format!("{BEGIN}\nMIIB\n{END}\n"), "cut short"),
            (format!("{one}-----BEGIN EC PRIVATE KEY-----\n{body}\n"), "private key"),
            (one.replace("CERTIFICATE", "X509 CRL"), "no certificate"),
            ("relative.pem".to_owned(), "something else"),
        ] {
            let error = Trust::parse(&text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(matches!(Trust::parse("/etc/ssl/a.pem"), Ok(Trust::File(_))));
    }
}

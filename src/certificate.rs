//! The certificate that the registries of this node show, as far as Larder has to understand it: whether it fits its
//! key and its name, until when it is good, and whether a registry shows this very one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::root::Root;
use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

/// One that has less left is told of: renewals begin a month before the end.
pub const SOON: Duration = Duration::from_secs(21 * 86_400);

/// A chain, its own certificate first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Certificate {
    /// # Errors
    /// When there is none in the PEM text, or one that cannot be understood.
    pub fn parse(pem: &[u8]) -> Result<Self> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().context("it is no PEM file")?;
        let first = chain.first().context("there is no certificate in it")?;
        ParsedCertificate::try_from(first).context("it is no certificate that TLS takes")?;
        let (not_before, not_after) = validity(first).context("its first certificate is broken")?;
        Ok(Self { not_before, not_after, chain })
    }

    /// Whether it is for this address or DNS name.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        let parsed = self.chain.first().and_then(|first| ParsedCertificate::try_from(first).ok());
        let name = ServerName::try_from(name.to_owned()).ok();
        parsed.zip(name).is_some_and(|(parsed, name)| verify_server_name(&parsed, &name).is_ok())
    }

    /// # Errors
    /// When the PEM text is no private key, or another certificate's.
    pub fn fits(&self, key: &[u8]) -> Result<()> {
        let key = PrivateKeyDer::from_pem_slice(key).ok().context("there is no private key in it")?;
        match CertifiedKey::from_der(self.chain.clone(), key, &ring::default_provider()) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InconsistentKeys(_)) => bail!("it is another certificate's key"),
            Err(error) => bail!("it is no key that TLS takes: {error}"),
        }
    }

    /// Whether this is what a registry has shown.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        self.chain.first().is_some_and(|first| first.as_ref() == shown)
    }
}

/// The certificate in a file of this machine, by its absolute path.
///
/// # Errors
/// When it cannot be read, and as [`Certificate::parse`].
pub fn read(path: &str) -> Result<Certificate> {
    let root = Root::open(std::path::Path::new("/"))?;
    let pem =
        root.read(path.trim_start_matches('/'))?.with_context(|| format!("read {path}: it is not there"))?;
    Certificate::parse(&pem).with_context(|| format!("read {path}"))
}

/// A client that takes any certificate whose key the other side has, and remembers it.
///
/// # Errors
/// When the provider has no version of TLS in common with rustls.
pub fn witness() -> Result<(ClientConfig, Arc<Witness>)> {
    let provider = Arc::new(ring::default_provider());
    let witness =
        Arc::new(Witness { algorithms: provider.signature_verification_algorithms, shown: Mutex::default() });
    let mut config = builder(provider)?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    // A session that is taken up again shows no certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config, witness))
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().context("set up TLS")
}

/// What was shown.
#[derive(Debug)]
pub struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    shown: Mutex<Option<Vec<u8>>>,
}

impl Witness {
    #[must_use]
    pub fn shown(&self) -> Option<Vec<u8>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, constructed.
const VERSION: u8 = 0xa0;

/// From when until when (RFC 5280 section 4.1).
fn validity(certificate: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let (body, _) = expect(SEQUENCE, certificate)?;
    let (mut rest, _) = expect(SEQUENCE, body)?;
    if let Some((_, after)) = expect(VERSION, rest) {
        rest = after;
    }
    // The serial number, the algorithm and the issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        rest = expect(tag, rest)?.1;
    }
    let (validity, _) = expect(SEQUENCE, rest)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    Some((from, until))
}

/// The contents of the value at the start, if it is of that kind, and what follows it.
fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (contents, rest) = match bytes {
        [first, length @ 0..=0x7f, rest @ ..] if *first == tag => {
            rest.split_at_checked(usize::from(*length))?
        }
        [first, 0x81, length, rest @ ..] if *first == tag => rest.split_at_checked(usize::from(*length))?,
        [first, 0x82, high, low, rest @ ..] if *first == tag => {
            rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))?
        }
        _ => return None,
    };
    Some((contents, rest))
}

/// `YYMMDDHHMMSSZ` until 2049, `YYYYMMDDHHMMSSZ` after it.
fn time(bytes: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (text, rest) = match expect(UTC_TIME, bytes) {
        Some((text, rest)) => {
            let text = std::str::from_utf8(text).ok()?;
            let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            (format!("{century}{text}"), rest)
        }
        None => {
            let (text, rest) = expect(GENERALIZED_TIME, bytes)?;
            (std::str::from_utf8(text).ok()?.to_owned(), rest)
        }
    };
    let part = |range: std::ops::Range<usize>| text.get(range);
    let spelt = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4)?,
        part(4..6)?,
        part(6..8)?,
        part(8..10)?,
        part(10..12)?,
        part(12..14)?
    );
    (text.len() == 15 && text.ends_with('Z'))
        .then(|| humantime::parse_rfc3339(&spelt).ok())
        .flatten()
        .map(|time| (time, rest))
}

#[cfg(test)]
mod tests;

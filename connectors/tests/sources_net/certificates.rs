//! Certificates made for one test, and a client that shows them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// An authority, a server's certificate, a client's, and a client's of another authority.
pub(crate) struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        made.issue("");
        made
    }

    /// Makes all certificates, also again.
    pub(crate) fn issue(&self, note: &str) {
        let authority = authority(note);
        std::fs::write(self.path("ca.pem"), authority.pem()).unwrap();
        self.write("server", &authority);
        self.write("client", &authority);
        self.write("stranger", &self::authority("stranger"));
    }

    fn write(&self, name: &str, authority: &CertifiedIssuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, authority).unwrap();
        // The key first: whoever looks in between finds a pair that does not fit, as with any renewal.
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `tls: {…}` with these keys besides the server's certificate.
    pub(crate) fn tls(&self, more: &str) -> String {
        let (certificate, key) = (self.path("server.pem"), self.path("server.key"));
        format!("tls: {{certificate: \"{}\", key: \"{}\"{more}}}", certificate.display(), key.display())
    }

    /// Clients must show a certificate.
    pub(crate) fn mutual(&self) -> String {
        self.tls(&format!(", client_ca: \"{}\"", self.path("ca.pem").display()))
    }

    /// A client that trusts the authority and shows the certificate of this name, if any.
    pub(crate) fn client(&self, name: Option<&str>) -> ClientConfig {
        let mut authorities = RootCertStore::empty();
        authorities.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(authorities);
        match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = vec![CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()];
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }

    pub(crate) async fn connect(
        &self,
        addr: SocketAddr,
        name: Option<&str>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(addr).await?;
        let server = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(self.client(name))).connect(server, stream).await
    }
}

fn authority(note: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("test authority {note}"));
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

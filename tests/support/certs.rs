//! Certificates for one server under test: an authority, a server for 127.0.0.1 and a client, fresh each time.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// PEM files.
#[derive(Clone, Debug)]
pub struct CertFiles {
    pub ca: PathBuf,
    pub server_cert: PathBuf,
    pub server_key: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
}

impl CertFiles {
    /// Makes them all in `dir`. The client's common name is `client_name`; etcd takes it as the user's name where
    /// authentication is on and no password was given.
    pub fn make(dir: &Path, client_name: &str) -> CertFiles {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        ca.distinguished_name
            .push(DnType::CommonName, "falconer test authority");
        let ca_pem = ca.self_signed(&ca_key).expect("an authority").pem();
        let issuer = Issuer::new(ca, ca_key);

        let files = CertFiles {
            ca: dir.join("ca.pem"),
            server_cert: dir.join("server.pem"),
            server_key: dir.join("server.key"),
            client_cert: dir.join("client.pem"),
            client_key: dir.join("client.key"),
        };
        let (server, server_key) = leaf(&issuer, "etcd", &["127.0.0.1", "localhost"]);
        let (client, client_key) = leaf(&issuer, client_name, &[]);
        for (path, pem) in [
            (&files.ca, ca_pem),
            (&files.server_cert, server),
            (&files.server_key, server_key),
            (&files.client_cert, client),
            (&files.client_key, client_key),
        ] {
            fs::write(path, pem).expect("a PEM file");
        }
        files
    }
}

/// A certificate and its key, good for both ends: etcd's own gateway dials the server with the server's certificate.
fn leaf(issuer: &Issuer<'_, KeyPair>, name: &str, hosts: &[&str]) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("subject alternative names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let pem = params.signed_by(&key, issuer).expect("a certificate").pem();
    (pem, key.serialize_pem())
}

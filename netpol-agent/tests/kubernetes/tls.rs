//! Two authorities and what they have signed. Their files are good from 2020 to 2120; their own keys are lost.

use std::{fs, path::Path, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

/// An authority, and a certificate that it has signed for whoever is on loopback, as a server or a client.
#[derive(Clone, Copy)]
pub(crate) struct Pki {
    authority: &'static [u8],
    certificate: &'static [u8],
    key: &'static [u8],
}

pub(crate) const OLD: Pki = Pki {
    authority: include_bytes!("pki/old/ca.crt"),
    certificate: include_bytes!("pki/old/end.crt"),
    key: include_bytes!("pki/old/end.key"),
};
pub(crate) const NEW: Pki = Pki {
    authority: include_bytes!("pki/new/ca.crt"),
    certificate: include_bytes!("pki/new/end.crt"),
    key: include_bytes!("pki/new/end.key"),
};

impl Pki {
    /// A server that lets in whom the authority of `clients` has signed.
    pub(crate) fn acceptor(self, clients: Self) -> TlsAcceptor {
        let certificate = |pem| CertificateDer::from_pem_slice(pem).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate(clients.authority)).unwrap();
        let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key).unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate(self.certificate)], key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }

    /// Writes by what a client knows the server.
    pub(crate) fn write_authority(self, dir: &Path) {
        fs::write(dir.join("ca.crt"), self.authority).unwrap();
    }

    /// Writes by what the server knows a client.
    pub(crate) fn write_client(self, dir: &Path) {
        fs::write(dir.join("client.crt"), self.certificate).unwrap();
        fs::write(dir.join("client.key"), self.key).unwrap();
    }
}

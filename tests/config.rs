//! Where is my cluster: every source, their order, the origin of every value, and one line for everything that is wrong.
//!
//! `tests/configs/valid` holds files with the settings they resolve to beside them, `tests/configs/invalid` files with the one
//! line they are refused with. `FALCONER_WRITE_EXPECTED=1` writes what is missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser;
use falconer::config::{Config, Flags, MASK, Origin, Resolved, Surroundings};
use falconer::engine::error::{Error, ErrorKind};
use falconer::engine::profile::{Access, MetaProfile, ObjectKind, S3Profile};
use secrecy::ExposeSecret as _;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

/// Flags as typed.
fn typed(line: &str) -> Flags {
    let words = std::iter::once("falconer").chain(line.split_whitespace());
    Line::try_parse_from(words)
        .unwrap_or_else(|e| panic!("{e}"))
        .flags
}

fn around(env: &[(&str, &str)]) -> Surroundings {
    Surroundings {
        env: env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        cwd: PathBuf::from("/nowhere"),
        config_file: PathBuf::from("/nowhere/config.toml"),
        data_dir: PathBuf::from("/home/me/.local/share/falconer"),
    }
}

fn resolve(line: &str, env: &[(&str, &str)]) -> Resolved {
    Config::resolve(&typed(line), &around(env)).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn refuse(line: &str, env: &[(&str, &str)]) -> Error {
    match Config::resolve(&typed(line), &around(env)) {
        Ok(_) => panic!("{line} is accepted"),
        Err(e) => e,
    }
}

fn setting(found: &Resolved, key: &str) -> (String, Origin) {
    let s = found
        .origins
        .iter()
        .find(|s| s.key == key)
        .unwrap_or_else(|| panic!("{key} is not among the settings"));
    (s.value.clone(), s.origin.clone())
}

fn s3(found: &Resolved) -> S3Profile {
    match &found.profile.objects.as_ref().expect("objects").kind {
        ObjectKind::S3(s3) => s3.clone(),
        other => panic!("{other:?}"),
    }
}

fn configs(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/configs")
        .join(folder)
}

/// Opens a file of `tests/configs` the way a person would.
fn open(file: &Path) -> Result<Resolved, Error> {
    let mut around = around(&[]);
    around.cwd = PathBuf::from("/nowhere");
    let mut flags = Flags::default();
    if file.extension().is_some_and(|e| e == "toml") {
        file.clone_into(&mut around.config_file);
    } else {
        flags.milvus_yaml = Some(file.to_owned());
    }
    Config::resolve(&flags, &around)
}

fn cases(folder: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(configs(folder))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml" || e == "yaml"))
        .collect();
    all.sort();
    all
}

/// Compares with the text beside `file`; `{dir}` stands for the folder.
fn compare(file: &Path, got: &str) {
    let dir = file.parent().unwrap().display().to_string();
    let got = got.replace(&dir, "{dir}");
    let beside = PathBuf::from(format!("{}.txt", file.display()));
    if !beside.exists() && std::env::var_os("FALCONER_WRITE_EXPECTED").is_some() {
        std::fs::write(&beside, format!("{got}\n")).unwrap();
    }
    let wanted =
        std::fs::read_to_string(&beside).unwrap_or_else(|e| panic!("{}: {e}", beside.display()));
    assert_eq!(got.trim_end(), wanted.trim_end(), "{}", file.display());
}

#[test]
fn every_valid_file_resolves_to_the_settings_beside_it() {
    let all = cases("valid");
    assert!(all.len() >= 6, "{all:?}");
    for file in all {
        let found = open(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let mut lines: Vec<String> = found
            .origins
            .iter()
            .map(|s| format!("{} = {} ({})", s.key, s.value, s.origin))
            .collect();
        lines.push(format!("name: {}", found.profile.name));
        lines.push(format!("access: {:?}", found.profile.access));
        lines.extend(found.notes.iter().map(|n| format!("note: {n}")));
        compare(&file, &lines.join("\n"));
    }
}

#[test]
fn every_invalid_file_is_refused_with_the_line_beside_it() {
    let all = cases("invalid");
    assert!(all.len() >= 25, "{all:?}");
    for file in all {
        let Err(e) = open(&file) else {
            panic!("{} is accepted", file.display());
        };
        let line = e.to_string();
        assert!(!line.contains('\n'), "{line}");
        assert!(
            matches!(e.kind(), ErrorKind::Config | ErrorKind::Unsupported),
            "{line}"
        );
        compare(&file, &line);
    }
}

#[test]
fn nothing_at_all_is_the_embedded_store() {
    let found = resolve("", &[]);
    let home = "/home/me/.local/share/falconer/default";
    match &found.profile.meta {
        MetaProfile::Embedded { file } => assert_eq!(file, &Path::new(home).join("meta.redb")),
        other => panic!("{other:?}"),
    }
    let objects = found.profile.objects.as_ref().unwrap();
    match &objects.kind {
        ObjectKind::Local {
            dir,
            absolute: false,
        } => assert_eq!(dir, &Path::new(home).join("bucket")),
        other => panic!("{other:?}"),
    }
    assert_eq!(objects.root, "files");
    assert_eq!(found.profile.name, "embedded");
    assert_eq!(found.profile.access, Access::ReadWrite);
    assert_eq!(found.profile.roots.root, "by-dev");
    assert_eq!(
        (
            found.profile.roots.meta.as_str(),
            found.profile.roots.kv.as_str()
        ),
        ("meta", "kv")
    );
    assert!(found.notes.is_empty());

    // Another home, by flag and by variable; a relative one starts at the working directory.
    for (line, env) in [
        ("--data-dir here", None),
        ("", Some(("FALCONER_HOME", "here"))),
    ] {
        let found = resolve(line, &env.into_iter().collect::<Vec<_>>());
        match &found.profile.meta {
            MetaProfile::Embedded { file } => {
                assert_eq!(file, Path::new("/nowhere/here/default/meta.redb"));
            }
            other => panic!("{other:?}"),
        }
    }
    // Milvus's own bucket variables do not pull the embedded store's objects away.
    let found = resolve(
        "",
        &[("MINIO_BUCKET_NAME", "other"), ("MINIO_ADDRESS", "s3:9000")],
    );
    assert!(matches!(
        found.profile.objects.unwrap().kind,
        ObjectKind::Local { .. }
    ));
    // Ours do, and then it is somebody else's bucket.
    let found = resolve("--bucket s3://other --s3-endpoint http://s3:9000", &[]);
    assert_eq!(s3(&found).bucket, "other");
    assert_eq!(found.profile.access, Access::ReadOnly);
}

#[test]
fn a_real_cluster_is_read_only_until_told() {
    assert_eq!(
        resolve("--etcd a:2379", &[]).profile.access,
        Access::ReadOnly
    );
    assert_eq!(
        resolve("--etcd a:2379 --write", &[]).profile.access,
        Access::ReadWrite
    );
    assert_eq!(resolve("--read-only", &[]).profile.access, Access::ReadOnly);
    assert!(Line::try_parse_from(["f", "--read-only", "--write"]).is_err());
    assert!(Line::try_parse_from(["f", "--dump", "x", "--etcd", "a:1"]).is_err());

    let found = resolve("--dump d.jsonl.gz", &[]);
    assert_eq!(found.profile.access, Access::ReadOnly);
    assert!(found.profile.objects.is_none());
    assert_eq!(found.profile.name, "d.jsonl.gz");
    assert!(
        matches!(found.profile.meta, MetaProfile::Dump { file } if file == Path::new("/nowhere/d.jsonl.gz"))
    );
    let e = refuse("--dump d --write", &[]);
    assert!(
        e.to_string()
            .starts_with("--write: a dump can only be read"),
        "{e}"
    );
    assert!(
        resolve("--dump d --bucket s3://b --s3-endpoint h:1", &[])
            .profile
            .objects
            .is_some()
    );
}

#[test]
fn each_source_goes_before_the_next_and_says_so() {
    let yaml = configs("valid").join("standalone.yaml");
    let toml = configs("valid").join("profiles.toml");
    let (yaml, toml) = (yaml.display().to_string(), toml.display().to_string());
    let of = |line: &str, env: &[(&str, &str)]| {
        let mut env = env.to_vec();
        env.push(("FALCONER_CONFIG", &toml));
        let found = resolve(&format!("--milvus-yaml {yaml} {line}"), &env);
        (setting(&found, "etcd.rootPath"), found)
    };
    let ((text, origin), found) = of(
        "--root flag",
        &[("FALCONER_ROOT", "ours"), ("ETCD_ROOTPATH", "theirs")],
    );
    assert_eq!((text.as_str(), origin), ("flag", Origin::Flag("--root")));
    assert_eq!(found.profile.name, "prod", "default_profile");
    assert_eq!(found.color.as_deref(), Some("red"));
    let ((text, origin), _) = of(
        "",
        &[("FALCONER_ROOT", "ours"), ("ETCD_ROOTPATH", "theirs")],
    );
    assert_eq!(
        (text.as_str(), origin),
        ("ours", Origin::Env("FALCONER_ROOT".into()))
    );
    let ((text, origin), found) = of("", &[("etcd_rootPath", "theirs")]);
    assert_eq!(
        (text.as_str(), origin),
        ("theirs", Origin::Env("etcd_rootPath".into()))
    );
    assert!(
        found
            .notes
            .iter()
            .any(|n| n.contains("etcd.rootPath: $etcd_rootPath is used, not")),
        "{:?}",
        found.notes
    );
    let ((text, origin), _) = of("", &[]);
    assert_eq!(
        (text.as_str(), origin),
        (
            "prod",
            Origin::ProfileFile {
                path: toml.clone().into(),
                line: 5
            }
        )
    );
    let ((text, origin), found) = of("--profile lab", &[]);
    assert_eq!(
        (text.as_str(), origin),
        (
            "by-dev",
            Origin::MilvusYaml {
                path: yaml.clone().into(),
                line: 4
            }
        )
    );
    assert_eq!(found.profile.access, Access::ReadWrite, "readonly = false");
    assert_eq!(
        setting(&found, "etcd.dialTimeout"),
        ("5000".to_owned(), Origin::Default)
    );
    // `readonly` of a profile gives way to a flag.
    assert_eq!(of("--write", &[]).1.profile.access, Access::ReadWrite);
    let e = refuse("--profile prdo", &[("FALCONER_CONFIG", &toml)]).to_string();
    assert!(
        e.starts_with("--profile: ") && e.ends_with("did you mean \"prod\"?"),
        "{e}"
    );
    let e = refuse("--profile prod", &[]).to_string();
    assert!(
        e.contains("/nowhere/config.toml does not exist") && e.contains("[profiles.prod]"),
        "{e}"
    );
    let e = refuse("", &[("FALCONER_CONFIG", "/nowhere/else.toml")]).to_string();
    assert!(e.contains("/nowhere/else.toml cannot be read"), "{e}");
}

#[test]
fn names_are_compared_as_milvus_does() {
    for name in [
        "MINIO_BUCKETNAME",
        "MINIO_BUCKET_NAME",
        "minio_bucketName",
        "MILVUS_CONF_MINIO_BUCKET_NAME",
        "minio.bucketName",
        "milvus.minio.bucketName",
        "minio/bucketName",
        "MINIOBUCKETNAME",
    ] {
        let found = resolve("--etcd a:1", &[(name, "b")]);
        assert_eq!(
            setting(&found, "minio.bucketName"),
            ("b".to_owned(), Origin::Env(name.to_owned())),
            "{name}"
        );
    }
    let found = resolve(
        "--etcd a:1",
        &[("XMINIO_BUCKETNAME", "b"), ("BUCKETNAME", "b")],
    );
    assert_eq!(setting(&found, "minio.bucketName").1, Origin::Default);
    // What Kubernetes injects for a service called minio is not a port, and the prefixed name goes before the plain one.
    let found = resolve("--etcd a:1", &[("MINIO_PORT", "tcp://10.0.0.7:9000")]);
    assert_eq!(
        s3(&found).endpoint.as_deref(),
        Some("http://localhost:9000")
    );
    assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
    let found = resolve(
        "--etcd a:1",
        &[("MINIO_PORT", "1"), ("MILVUS_CONF_MINIO_PORT", "2")],
    );
    assert_eq!(s3(&found).endpoint.as_deref(), Some("http://localhost:2"));
    // Milvus's own variable is enough to attach.
    let found = resolve("", &[("ETCD_ENDPOINTS", "a:1,b:2")]);
    match &found.profile.meta {
        MetaProfile::Etcd(etcd) => assert_eq!(etcd.endpoints, ["http://a:1", "http://b:2"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_word_says_where_the_bucket_is() {
    let of = |word: &str| {
        resolve(&format!("--etcd a:1 --bucket {word}"), &[])
            .profile
            .objects
            .unwrap()
    };
    let objects = of("s3://b/some/root/");
    assert_eq!(objects.root, "some/root");
    assert!(matches!(objects.kind, ObjectKind::S3(S3Profile { bucket, .. }) if bucket == "b"));
    assert_eq!(of("s3://b").root, "files");
    assert_eq!(of("s3://b/").root, "");
    assert_eq!(of("b").root, "files");
    assert!(
        matches!(of("gs://b/r").kind, ObjectKind::Gcs { bucket, endpoint: None, .. } if bucket == "b")
    );
    let found = resolve(
        "--etcd a:1 --bucket az://c/r --access-key acc",
        &[("FALCONER_SECRET_KEY", "s")],
    );
    assert!(matches!(
        found.profile.objects.unwrap().kind,
        ObjectKind::Azure { account, container, endpoint: None, .. } if account == "acc" && container == "c"
    ));
    let dir = tempfile::tempdir().unwrap();
    let objects = of(&format!("file://{}", dir.path().display()));
    assert_eq!(objects.root, "files");
    assert!(
        matches!(objects.kind, ObjectKind::Local { dir: d, absolute: false } if d == dir.path())
    );
    for bad in ["ftp://x", "a/b", "s3:///x", "file://", "a:b"] {
        let e = refuse(&format!("--etcd a:1 --bucket {bad}"), &[]).to_string();
        assert!(
            e.starts_with("--bucket: ") && e.contains("write s3://bucket/root"),
            "{e}"
        );
    }
    // The folder of a lower source gives way to a bucket of a higher one.
    let folder = format!("file://{}", dir.path().display());
    let found = resolve(
        "--etcd a:1 --bucket s3://b",
        &[("FALCONER_BUCKET", &folder)],
    );
    assert_eq!(s3(&found).bucket, "b");
}

#[test]
fn s3_endpoints_are_put_together_as_milvus_does() {
    let of = |env: &[(&str, &str)]| s3(&resolve("--etcd a:1", env));
    assert_eq!(of(&[]).endpoint.as_deref(), Some("http://localhost:9000"));
    assert_eq!(
        of(&[("MINIO_ADDRESS", "m"), ("MINIO_USESSL", "true")])
            .endpoint
            .as_deref(),
        Some("https://m:9000")
    );
    // A colon in the address makes the port void.
    assert_eq!(
        of(&[("MINIO_ADDRESS", "m:1"), ("MINIO_PORT", "nonsense")])
            .endpoint
            .as_deref(),
        Some("http://m:1")
    );
    assert_eq!(
        of(&[("FALCONER_S3_ENDPOINT", "https://m:1/")])
            .endpoint
            .as_deref(),
        Some("https://m:1")
    );
    // A region or a cloud identity without an address is AWS.
    assert_eq!(of(&[("FALCONER_REGION", "eu-west-3")]).endpoint, None);
    let iam = of(&[("MINIO_USEIAM", "true")]);
    assert!(iam.endpoint.is_none() && iam.credentials.is_none());
    let aws = of(&[
        ("MINIO_ADDRESS", "s3.eu-west-3.amazonaws.com"),
        ("MINIO_PORT", "443"),
        ("MINIO_USESSL", "1"),
    ]);
    assert_eq!(aws.region, "eu-west-3");
    assert!(!aws.virtual_host);
    for provider in ["aliyun", "tencent"] {
        assert!(
            of(&[("MINIO_CLOUDPROVIDER", provider)]).virtual_host,
            "{provider}"
        );
    }
    assert_eq!(
        of(&[("MINIO_CLOUDPROVIDER", "gcp")]).endpoint.as_deref(),
        Some("https://storage.googleapis.com")
    );
}

#[test]
fn etcd_gets_its_identity_only_when_it_is_switched_on() {
    let user = |line: &str, env: &[(&str, &str)]| match resolve(line, env).profile.meta {
        MetaProfile::Etcd(etcd) => etcd.user.map(|(u, p)| (u, p.expose_secret().to_owned())),
        other => panic!("{other:?}"),
    };
    let both = [("ETCD_AUTH_USERNAME", "u"), ("ETCD_AUTH_PASSWORD", "p")];
    assert_eq!(user("--etcd a:1", &both), None);
    let on = [both[0], both[1], ("ETCD_AUTH_ENABLED", "true")];
    assert_eq!(user("--etcd a:1", &on), Some(("u".into(), "p".into())));
    // A person who names a user means it.
    assert_eq!(
        user(
            "--etcd a:1 --etcd-user root",
            &[("FALCONER_ETCD_PASSWORD", "p")]
        ),
        Some(("root".into(), "p".into()))
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pw");
    std::fs::write(&file, "from file\n").unwrap();
    let line = format!(
        "--etcd a:1 --etcd-user root --etcd-password-file {}",
        file.display()
    );
    assert_eq!(user(&line, &[]), Some(("root".into(), "from file".into())));
    let e = refuse("--etcd a:1 --etcd-user root", &[]).to_string();
    assert!(e.contains("FALCONER_ETCD_PASSWORD"), "{e}");
}

#[test]
fn etcd_tls_is_server_only_or_mutual() {
    let dir = tempfile::tempdir().unwrap();
    let pem = |name: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, "").unwrap();
        file.display().to_string()
    };
    let (ca, cert, key) = (pem("ca"), pem("cert"), pem("key"));
    let tls = |line: &str| match resolve(line, &[]).profile.meta {
        MetaProfile::Etcd(etcd) => (etcd.endpoints, etcd.tls),
        other => panic!("{other:?}"),
    };
    let (endpoints, found) = tls("--etcd https://a:1");
    assert_eq!(endpoints, ["https://a:1"]);
    let found = found.unwrap();
    assert!(found.ca.is_none() && found.cert.is_none() && found.key.is_none());
    let (endpoints, found) = tls(&format!("--etcd a:1 --etcd-ca {ca}"));
    assert_eq!(endpoints, ["https://a:1"], "a CA means TLS");
    assert_eq!(found.unwrap().ca.unwrap().display().to_string(), ca);
    let (_, found) = tls(&format!("--etcd a:1 --etcd-cert {cert} --etcd-key {key}"));
    let found = found.unwrap();
    assert_eq!(found.cert.unwrap().display().to_string(), cert);
    assert_eq!(found.key.unwrap().display().to_string(), key);
    assert_eq!(tls("--etcd a:1").0, ["http://a:1"]);
}

#[test]
fn a_folder_of_milvus_files_is_layered_as_milvus_does() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "milvus.yaml",
        "etcd:\n  endpoints: base:1\n  rootPath: base\nminio:\n  bucketName: base\n",
    );
    write("_test.yaml", "minio:\n  bucketName: test\n");
    write("default.yaml", "etcd:\n  rootPath: default\n");
    write("user.yaml", "# mine\netcd:\n  rootPath: user\n");
    write("other.yaml", "etcd:\n  rootPath: other\n");
    let folder = dir.path().display().to_string();
    for (line, env) in [
        (format!("--milvus-yaml {folder}"), vec![]),
        (format!("--milvus-yaml {folder}/milvus.yaml"), vec![]),
        (String::new(), vec![("MILVUSCONF", folder.as_str())]),
    ] {
        let found = resolve(&line, &env);
        assert_eq!(
            setting(&found, "etcd.rootPath"),
            (
                "user".to_owned(),
                Origin::MilvusYaml {
                    path: dir.path().join("user.yaml"),
                    line: 3
                }
            )
        );
        assert_eq!(setting(&found, "minio.bucketName").0, "test");
        assert_eq!(setting(&found, "etcd.endpoints").0, "base:1");
    }
    // Any other name is one file, and goes before the folder in the environment.
    let found = resolve(
        &format!("--etcd a:1 --milvus-yaml {folder}/other.yaml"),
        &[("MILVUSCONF", &folder)],
    );
    assert_eq!(setting(&found, "etcd.rootPath").0, "other");
    assert_eq!(setting(&found, "minio.bucketName").1, Origin::Default);
    let e = refuse("", &[("MILVUSCONF", "/nowhere")]).to_string();
    assert!(e.contains("$MILVUSCONF") && e.contains("/nowhere"), "{e}");
}

#[test]
fn etcd_configuration_fills_what_nobody_said() {
    let found = resolve(
        "--etcd a:1 --root r --region x",
        &[("MINIO_ROOTPATH", "from-env")],
    );
    assert_eq!(found.etcd_config_prefix(), "r/config");
    let pairs: Vec<(String, String)> = [
        ("r/config/miniobucketname", "normalised"),
        ("r/config/minio.bucketName", "dotted"),
        ("r/config/minio/rootPath", "from-etcd"),
        ("r/config/minioregion", "y"),
        ("r/config/etcdrootpath", "never"),
        ("r/config/mqtype", "kafka"),
        ("r/configuration/minioport", "1"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .to_vec();
    let found = found.with_etcd_config(&pairs).unwrap();
    assert_eq!(
        setting(&found, "minio.bucketName"),
        (
            "normalised".to_owned(),
            Origin::EtcdConfig {
                key: "r/config/miniobucketname".into()
            }
        )
    );
    // What was said stays; that Milvus itself runs with another value is not hidden.
    assert_eq!(setting(&found, "minio.rootPath").0, "from-env");
    assert_eq!(setting(&found, "minio.region").0, "x");
    assert_eq!(found.profile.roots.root, "r");
    let notes = found.notes.join("\n");
    assert!(
        notes.contains("minio.rootPath differs: $MINIO_ROOTPATH is used here"),
        "{notes}"
    );
    assert!(
        notes.contains("minio.bucketName is written twice"),
        "{notes}"
    );
    assert!(!notes.contains("minio.region"), "a flag is meant: {notes}");
}

#[test]
fn no_secret_is_ever_shown() {
    let secret = "hunter2-hunter2";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(
        &file,
        format!(
            "default_profile = \"p\"\n[profiles.p]\netcd = \"https://root:{secret}@etcd:2379\"\netcd_user = \"u\"\netcd_password = \"{secret}\"\naccess_key = \"a\"\nsecret_key = \"{secret}\"\ns3_endpoint = \"https://root:{secret}@s3:9000\"\nbucket = \"b\"\n"
        ),
    )
    .unwrap();
    let file = file.display().to_string();
    let found = resolve(
        "",
        &[
            ("FALCONER_CONFIG", &file),
            ("MINIO_GCPCREDENTIALJSON", secret),
        ],
    );
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        found.origins,
        found.notes,
        found.profile.name,
        s3(&found).credentials
    );
    assert!(!shown.contains(secret), "{shown}");
    assert!(shown.contains(MASK));
    assert_eq!(setting(&found, "minio.secretAccessKey").0, MASK);
    assert_eq!(setting(&found, "etcd.auth.password").0, MASK);
    assert_eq!(s3(&found).credentials.unwrap().1.expose_secret(), secret);

    let bad = format!("ftp://u:{secret}@x");
    let mut env = BTreeMap::from([("FALCONER_BUCKET", bad.as_str()), ("FALCONER_ETCD", "a:1")]);
    for _ in 0..2 {
        let all: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, *v)).collect();
        let line = refuse("", &all).to_string();
        assert!(!line.contains(secret), "{line}");
        env = BTreeMap::from([("FALCONER_ETCD", bad.as_str())]);
    }
}

//! Object stores, in the words of Distribution's storage drivers (its docs, "Storage drivers"). What 2.x and 3.x
//! name differently, or only one of them knows, is decided where the engine is known: in the plan.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::build::Build;
use super::choices::Secret;
use super::form;
use super::values::ScheduleForm;
use super::{AbsolutePath, RemoteUrl, SecretSource, StoreName, UpstreamHost};
use crate::profile::decode::{At, Decode, Decoder};
use crate::profile::record::{keyword, nullable, record, set};
use crate::profile::{Place, Problem, Value};

/// Where the registries of this node, and those of others that share it, keep their data.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectStore {
    pub driver: Driver,
    /// Of the driver, by Distribution's own names; neither the prefix nor secrets are among them.
    pub settings: Map<String, Json>,
    /// By Distribution's own name, `_` for each step further in.
    pub secrets: Vec<(&'static str, SecretSource)>,
    /// Starts with a slash; each upstream has a folder of its name in it.
    pub prefix: AbsolutePath,
}

/// A storage driver of Distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    S3,
    Azure,
    Gcs,
}

impl Driver {
    /// As the profile and Distribution's configuration spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Azure => "azure",
            Self::Gcs => "gcs",
        }
    }

    /// The Go package that a registry has it by.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::S3 => "registry/storage/driver/s3-aws",
            Self::Azure => "registry/storage/driver/azure",
            Self::Gcs => "registry/storage/driver/gcs",
        }
    }
}

impl ObjectStore {
    /// The variable that hands Distribution one of its secrets.
    #[must_use]
    pub fn variable(&self, secret: &str) -> String {
        format!("REGISTRY_STORAGE_{}_{}", self.driver.name(), secret).to_uppercase()
    }

    /// Where one upstream's data is, as the driver's `rootdirectory`.
    #[must_use]
    pub fn folder(&self, host: &str) -> String {
        format!("{}/{host}", self.prefix.as_str().trim_end_matches('/'))
    }
}

/// A whole number within Distribution's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Decode for Within<MIN, MAX> {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        let wanted = format!("a number from {MIN} to {MAX}");
        let number = decoder.number(value, &wanted)?;
        if (MIN..=MAX).contains(&number) {
            return Some(Self(number));
        }
        let problem = decoder.problem(value.place(), format!("wanted {wanted}, got {number}"));
        decoder.push(problem);
        None
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// Bytes; 5 GiB is the most that S3 takes at once.
type ChunkSize = Within<5_242_880, 5_368_709_120>;

/// Words that a driver takes for one of its parameters.
macro_rules! one_of {
    ($(#[$doc:meta])* $name:ident: $($word:literal),* $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name(&'static str);

        keyword!($name { $($word => Self($word),)* });
    };
}

one_of!(
    /// What new objects are stored as.
    StorageClass: "STANDARD", "REDUCED_REDUNDANCY", "NONE", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING",
    "OUTPOSTS", "GLACIER_IR", "EXPRESS_ONEZONE",
);
one_of!(
    /// Who may read new objects.
    ObjectAcl: "private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read",
    "bucket-owner-read", "bucket-owner-full-control",
);
one_of!(
    /// What the driver says of its requests.
    LogLevel: "off", "debug", "debugwithsigning", "debugwithhttpbody", "debugwithrequestretries",
    "debugwithrequesterrors", "debugwitheventstreambody",
);
one_of!(
    /// How Azure is shown who asks.
    AzureAuth: "shared_key", "client_secret", "default_credentials",
);

record! {
    /// Amazon S3, or a server that speaks it.
    #[written = "{ bucket: registry-cache, region: eu-central-1 }"]
    pub struct S3 {
        /// The bucket.
        #[required = "bucket: registry-cache"]
        bucket: StoreName,
        /// The bucket's region; a server of your own usually takes any.
        #[required = "region: eu-central-1"]
        region: StoreName,
        /// A server of your own.
        #[otherwise = "Amazon's"]
        #[example = "https://s3.lab.internal"]
        regionendpoint: RemoteUrl,
        /// Whether a server of your own is asked by path rather than by the bucket's name.
        #[otherwise = "`true` where there is a `regionendpoint` (3.x)"]
        forcepathstyle: At<bool>,
        /// Who the registry is there.
        #[otherwise = "what the machine itself is given (IAM)"]
        accesskey: At<Secret>,
        /// Belongs to `accesskey`.
        #[otherwise = "none"]
        secretkey: At<Secret>,
        /// The prefix in the bucket; each upstream has a folder in it.
        #[default = "/"]
        #[example = "/fleet"]
        rootdirectory: AbsolutePath,
        /// Whether the store encrypts what it is given.
        #[otherwise = "Distribution's own"]
        encrypt: bool,
        /// The KMS key to encrypt with.
        #[otherwise = "none"]
        keyid: StoreName,
        /// Whether an endpoint without a scheme is asked by https.
        #[otherwise = "Distribution's own"]
        secure: bool,
        /// Take any certificate.
        #[otherwise = "Distribution's own"]
        skipverify: bool,
        /// Whether requests are signed by version 4.
        #[otherwise = "Distribution's own"]
        v4auth: bool,
        /// Bytes of a part of an upload.
        #[otherwise = "Distribution's own"]
        #[example = "10485760"]
        chunksize: ChunkSize,
        /// Bytes of a part of a copy.
        #[otherwise = "Distribution's own"]
        #[example = "33554432"]
        multipartcopychunksize: ChunkSize,
        /// Parts of a copy at once.
        #[otherwise = "Distribution's own"]
        #[example = "100"]
        multipartcopymaxconcurrency: Within<1, 1_000>,
        /// Bytes above which a copy is made in parts.
        #[otherwise = "Distribution's own"]
        #[example = "33554432"]
        multipartcopythresholdsize: Within<0, 5_368_709_120>,
        /// What objects are stored as.
        #[otherwise = "Distribution's own"]
        #[example = "STANDARD_IA"]
        storageclass: StorageClass,
        /// Who may read the objects.
        #[otherwise = "Distribution's own"]
        #[example = "private"]
        objectacl: ObjectAcl,
        /// Amazon's endpoints with IPv6 (3.x).
        #[otherwise = "Distribution's own"]
        usedualstack: bool,
        /// Amazon's transfer acceleration (3.x).
        #[otherwise = "Distribution's own"]
        accelerate: bool,
        /// Amazon's FIPS endpoints (3.x).
        #[otherwise = "Distribution's own"]
        usefipsendpoint: bool,
        /// What the driver says of its requests (3.x).
        #[otherwise = "Distribution's own"]
        #[example = "debug"]
        loglevel: LogLevel,
    }
}

record! {
    /// Azure's blob storage (3.x).
    #[written = "{ accountname: caches, container: registry, accountkey: { file: /etc/larder/secrets/azure } }"]
    pub struct Azure {
        /// The storage account.
        #[required = "accountname: caches"]
        accountname: StoreName,
        /// The container.
        #[required = "container: registry"]
        container: StoreName,
        /// The account's key.
        #[otherwise = "`credentials`"]
        accountkey: At<Secret>,
        /// Another way to show who asks.
        #[otherwise = "`accountkey`"]
        #[example = "{ type: default_credentials }"]
        credentials: At<AzureCredentials>,
        /// The domain of a national cloud.
        #[otherwise = "Distribution's own"]
        #[example = "core.chinacloudapi.cn"]
        realm: StoreName,
        /// A server of your own.
        #[otherwise = "Azure's"]
        #[example = "https://blob.lab.internal"]
        serviceurl: RemoteUrl,
        /// The prefix in the container; each upstream has a folder in it.
        #[default = "/"]
        #[example = "/fleet"]
        rootdirectory: AbsolutePath,
        /// How often a request is tried again.
        #[otherwise = "Distribution's own"]
        #[example = "5"]
        max_retries: Within<1, 1_000>,
        /// How long it waits before.
        #[otherwise = "Distribution's own"]
        #[example = "100ms"]
        retry_delay: Duration,
        /// Take any certificate.
        #[otherwise = "Distribution's own"]
        skipverify: bool,
    }
}

/// How Azure is shown who asks. No record: `type` is a word of Rust's.
#[derive(Debug, Default)]
pub struct AzureCredentials {
    kind: Option<AzureAuth>,
    /// Of an application.
    clientid: Option<StoreName>,
    tenantid: Option<StoreName>,
    secret: Option<At<Secret>>,
}

impl Decode for AzureCredentials {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        const EXAMPLE: &str = "type: default_credentials";
        let mut credentials = Self::default();
        for (key, field) in decoder.record(value, Some("{ type: default_credentials }"))? {
            match &**key {
                "type" => credentials.kind = decoder.field(key, field),
                "clientid" => credentials.clientid = decoder.field(key, field),
                "tenantid" => credentials.tenantid = decoder.field(key, field),
                "secret" => credentials.secret = decoder.field(key, field),
                _ => decoder.unknown(key, field.key, value, &["type", "clientid", "tenantid", "secret"]),
            }
        }
        if !value.says("type") {
            decoder.missing("type", value, EXAMPLE);
        }
        Some(credentials)
    }

    fn schema() -> Json {
        let about = |mut schema: Json, about: &str| {
            set(&mut schema, "description", about);
            schema
        };
        let mut kind = AzureAuth::schema();
        set(&mut kind, "examples", json!(["default_credentials"]));
        json!({
            "type": "object", "required": ["type"], "additionalProperties": false,
            "properties": {
                "type": about(kind, "`default_credentials` is what the machine itself is given."),
                "clientid": about(nullable(StoreName::schema()), "Of an application. By default: none."),
                "tenantid": about(nullable(StoreName::schema()), "Its directory. By default: none."),
                "secret": about(nullable(Secret::schema()), "Its secret. By default: none."),
            },
            "x-order": ["type", "clientid", "tenantid", "secret"],
        })
    }
}

record! {
    /// Google Cloud Storage.
    #[written = "{ bucket: registry-cache, keyfile: /etc/larder/secrets/gcs.json }"]
    pub struct Gcs {
        /// The bucket.
        #[required = "bucket: registry-cache"]
        bucket: StoreName,
        /// A service account's key as JSON: its path, or where else it is.
        #[otherwise = "what the machine itself is given"]
        #[example = "/etc/larder/secrets/gcs.json"]
        keyfile: At<KeyFile>,
        /// The prefix in the bucket; each upstream has a folder in it.
        #[default = "/"]
        #[example = "/fleet"]
        rootdirectory: AbsolutePath,
        /// Bytes of a part of an upload, a multiple of 256 KiB.
        #[otherwise = "Distribution's own"]
        #[example = "5242880"]
        chunksize: At<Within<262_144, 5_368_709_120>>,
        /// Requests at once.
        #[otherwise = "Distribution's own"]
        #[example = "50"]
        maxconcurrency: Within<25, 1_000_000>,
    }
}

/// A path, or a secret that is not written down here.
#[derive(Debug)]
pub struct KeyFile(SecretSource);

impl Decode for KeyFile {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_map() {
            return Secret::decode(value, decoder).map(|secret| Self(secret.0));
        }
        AbsolutePath::decode(value, decoder).map(|path| Self(SecretSource::File(path.as_path().to_owned())))
    }

    fn schema() -> Json {
        let mut schema = Secret::schema();
        if let Some(text) = schema.pointer_mut("/oneOf/0") {
            *text = AbsolutePath::schema();
        }
        schema
    }
}

/// One driver and what it is told.
#[derive(Debug)]
pub enum StoreForm {
    S3(Box<S3>),
    Azure(Box<Azure>),
    Gcs(Gcs),
}

const DRIVERS: [&str; 3] = ["s3", "azure", "gcs"];

impl Decode for StoreForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        let (driver, field) = decoder.one_key(value, &DRIVERS)?;
        Some(match driver {
            "s3" => Self::S3(Box::new(decoder.field(driver, field)?)),
            "azure" => Self::Azure(Box::new(decoder.field(driver, field)?)),
            _ => Self::Gcs(decoder.field(driver, field)?),
        })
    }

    fn schema() -> Json {
        let one = |driver: &str, mut schema: Json, about: &str| {
            set(&mut schema, "description", about);
            json!({
                "type": "object", "required": [driver], "additionalProperties": false,
                "properties": { driver: schema },
            })
        };
        json!({ "oneOf": [
            one("s3", S3::schema(), "Amazon S3, or a server that speaks it."),
            one("azure", Azure::schema(), "Azure's blob storage."),
            one("gcs", Gcs::schema(), "Google Cloud Storage."),
        ] })
    }
}

/// Settings that are there, by Distribution's own names.
#[derive(Default)]
struct Settings(Map<String, Json>);

impl Settings {
    fn put(&mut self, key: &str, value: Option<impl Into<Json>>) {
        if let Some(value) = value {
            self.0.insert(key.to_owned(), value.into());
        }
    }
}

fn text(value: Option<impl fmt::Display>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn number<const MIN: u64, const MAX: u64>(value: Option<Within<MIN, MAX>>) -> Option<u64> {
    value.map(|value| value.0)
}

impl Build<'_> {
    /// What is asked of data that only an object store's own rules can bound and check.
    pub(super) fn beyond_reach(
        &mut self,
        cache: &form::Cache,
        upstreams: &[(At<UpstreamHost>, form::Upstream)],
    ) {
        let mut sizes: Vec<(String, Place)> = Vec::new();
        let mut scrubs = Vec::new();
        let is_asked = |scrub: &&At<ScheduleForm>| !matches!(scrub.value, ScheduleForm::Never);
        sizes.extend(cache.max_size.map(|size| ("cache.max_size".to_owned(), size.place)));
        scrubs.extend(cache.scrub.as_ref().filter(is_asked).map(|one| ("cache.scrub".to_owned(), one.place)));
        for (host, form) in upstreams {
            let key = |key: &str| format!("upstreams.{}.{key}", host.value);
            sizes.extend(form.max_size.map(|size| (key("max_size"), size.place)));
            scrubs.extend(form.scrub.as_ref().filter(is_asked).map(|one| (key("scrub"), one.place)));
        }
        for (key, place) in sizes {
            let message = format!("{key}: nobody here can say what an object store holds, nor whose it is");
            let help = "take it out, and bound the bucket by a rule of its own (docs/storage.md): what that deletes \
                        is fetched again";
            self.error(place, message, help);
        }
        for (key, place) in scrubs {
            let message = format!("{key}: an object store checks its data itself");
            self.error(place, message, "take it out, or write `never`");
        }
    }

    /// `None`: it cannot be used, and why has been reported.
    pub(super) fn object_store(&mut self, place: Place, form: StoreForm) -> Option<ObjectStore> {
        match form {
            StoreForm::S3(form) => self.s3(place, *form),
            StoreForm::Azure(form) => self.azure(place, *form),
            StoreForm::Gcs(form) => self.gcs(form),
        }
    }

    fn s3(&mut self, place: Place, form: S3) -> Option<ObjectStore> {
        let mut settings = Settings::default();
        settings.put("bucket", text(form.bucket.as_ref()));
        settings.put("region", text(form.region.as_ref()));
        settings.put("regionendpoint", text(form.regionendpoint.as_ref()));
        settings.put("forcepathstyle", form.forcepathstyle.map(|forced| forced.value));
        settings.put("encrypt", form.encrypt);
        settings.put("keyid", text(form.keyid));
        settings.put("secure", form.secure);
        settings.put("skipverify", form.skipverify);
        settings.put("v4auth", form.v4auth);
        settings.put("chunksize", number(form.chunksize));
        settings.put("multipartcopychunksize", number(form.multipartcopychunksize));
        settings.put("multipartcopymaxconcurrency", number(form.multipartcopymaxconcurrency));
        settings.put("multipartcopythresholdsize", number(form.multipartcopythresholdsize));
        settings.put("storageclass", form.storageclass.map(|class| class.0));
        settings.put("objectacl", form.objectacl.map(|acl| acl.0));
        settings.put("usedualstack", form.usedualstack);
        settings.put("accelerate", form.accelerate);
        settings.put("usefipsendpoint", form.usefipsendpoint);
        settings.put("loglevel", form.loglevel.map(|level| level.0));
        let secrets = match (form.accesskey, form.secretkey) {
            (None, None) => Vec::new(),
            (Some(access), Some(secret)) => {
                self.in_clear("cache.storage.s3.secretkey", &secret);
                vec![("accesskey", access.value.0), ("secretkey", secret.value.0)]
            }
            (access, _) => {
                let (there, absent) =
                    if access.is_some() { ("accesskey", "secretkey") } else { ("secretkey", "accesskey") };
                let message = format!("cache.storage.s3.{there}: there is no `{absent}` beside it");
                self.error(place, message, format!("write `{absent}: {{ file: /etc/larder/secrets/NAME }}`"));
                return None;
            }
        };
        form.bucket.zip(form.region)?;
        store(Driver::S3, settings, secrets, form.rootdirectory)
    }

    fn azure(&mut self, place: Place, form: Azure) -> Option<ObjectStore> {
        let mut settings = Settings::default();
        settings.put("accountname", text(form.accountname.as_ref()));
        settings.put("container", text(form.container.as_ref()));
        settings.put("realm", text(form.realm));
        settings.put("serviceurl", text(form.serviceurl));
        settings.put("max_retries", number(form.max_retries));
        settings.put("retry_delay", form.retry_delay.map(|delay| format!("{}ms", delay.as_millis())));
        settings.put("skipverify", form.skipverify);
        let mut secrets = Vec::new();
        let mut refuse = |place: Place, message: &str, help: &str| {
            self.report(Problem::error(place, format!("cache.storage.azure{message}")).help(help));
        };
        // 3.x wants the kind of its credentials named.
        let (kind, credentials) = match (form.credentials, &form.accountkey) {
            (None, None) => {
                let help = "write `accountkey: { file: /etc/larder/secrets/NAME }`, or `credentials: { type: \
                            default_credentials }`";
                refuse(place, ": there is no `accountkey`", help);
                return None;
            }
            (None, Some(_)) => ("shared_key", None),
            (Some(credentials), _) => (credentials.value.kind?.0, Some(credentials)),
        };
        let mut map = Settings::default();
        map.put("type", Some(kind));
        if let Some(At { value: credentials, place }) = credentials {
            let application = [
                credentials.clientid.is_some(),
                credentials.tenantid.is_some(),
                credentials.secret.is_some(),
            ];
            let wanted = kind == "client_secret";
            if application.contains(&!wanted) {
                let help =
                    "it takes all three of `clientid`, `tenantid` and `secret`; the others take none of them";
                refuse(place, &format!(".credentials: that is not all of `{kind}`"), help);
                return None;
            }
            map.put("clientid", text(credentials.clientid));
            map.put("tenantid", text(credentials.tenantid));
            if let Some(secret) = credentials.secret {
                self.in_clear("cache.storage.azure.credentials.secret", &secret);
                secrets.push(("credentials_secret", secret.value.0));
            }
        }
        match form.accountkey {
            Some(key) if kind == "shared_key" => {
                self.in_clear("cache.storage.azure.accountkey", &key);
                secrets.push(("accountkey", key.value.0));
            }
            Some(key) => {
                let message = format!("cache.storage.azure.accountkey: `{kind}` does without it");
                self.error(key.place, message, "take it out, or write `credentials: { type: shared_key }`");
                return None;
            }
            None if kind == "shared_key" => {
                let message = "cache.storage.azure: there is no `accountkey`";
                self.error(place, message, "write `accountkey: { file: /etc/larder/secrets/NAME }`");
                return None;
            }
            None => {}
        }
        settings.put("credentials", Some(map.0));
        form.accountname.zip(form.container)?;
        store(Driver::Azure, settings, secrets, form.rootdirectory)
    }

    fn gcs(&mut self, form: Gcs) -> Option<ObjectStore> {
        let mut settings = Settings::default();
        settings.put("bucket", text(form.bucket.as_ref()));
        settings.put("maxconcurrency", number(form.maxconcurrency));
        if let Some(At { value: Within(size), place }) = form.chunksize {
            if !size.is_multiple_of(256 * 1024) {
                let message = "cache.storage.gcs.chunksize: not a multiple of 256 KiB";
                let whole = size / (256 * 1024) * (256 * 1024);
                self.error(place, message, format!("write {whole}"));
            }
            settings.put("chunksize", Some(size));
        }
        // Distribution would read the file as a user who cannot: it gets what is in it.
        let secrets = form.keyfile.map(|key| ("credentials", key.value.0)).into_iter().collect();
        form.bucket?;
        store(Driver::Gcs, settings, secrets, form.rootdirectory)
    }
}

fn store(
    driver: Driver,
    settings: Settings,
    secrets: Vec<(&'static str, SecretSource)>,
    prefix: Option<AbsolutePath>,
) -> Option<ObjectStore> {
    let prefix = prefix.or_else(|| AbsolutePath::parse("/").ok())?;
    Some(ObjectStore { driver, settings: settings.0, secrets, prefix })
}

//! An endpoint that speaks EC2's query protocol and whose instances are real: local instances with their SSH
//! servers, services and all.
//!
//! It keeps a ledger of what exists, has switches for what can go wrong, and is strict: an unknown action, parameter
//! or filter, an unsigned request, an untagged resource are violations, and a test with violations fails when the
//! fake is dropped. It knows only what labhost uses of EC2.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use labhost::provider::{Provider as _, local::Local};
use tokio::{net::TcpListener, runtime::Runtime};

mod acts;
pub(crate) mod faults;
pub(crate) mod hosts;
mod http;
mod query;
mod reads;
mod world;
mod xml;

pub(crate) use faults::{Faults, Planned, When};
pub(crate) use world::{Call, Life, Machine, World};
pub(crate) use xml::refused;

use hosts::{Hosts, LocalHosts};
use http::{Answer, Connection, Request};
use query::Params;
use world::Rule;

/// EC2's limit for the values of one filter.
const FILTER_VALUES_MAX: usize = 200;

/// The fake and the runtime that serves it. Dropped, it removes its instances.
pub(crate) struct Cloud {
    fake: Arc<Fake>,
    runtime: Option<Runtime>,
    url: String,
    folder: Option<tempfile::TempDir>,
}

/// What the connections share.
pub(crate) struct Fake {
    hosts: Box<dyn Hosts>,
    /// What `hosts` is made of when the instances are local ones.
    local: Option<Arc<Local>>,
    world: tokio::sync::Mutex<World>,
    faults: Mutex<Faults>,
    /// Who the caller is.
    arn: Mutex<String>,
}

impl Cloud {
    /// Whose instances are local ones.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("cloud-").tempdir().unwrap();
        let local = Arc::new(Local::new(&folder.path().join("cloud"), &crate::lab::program()).unwrap());
        let hosts = Box::new(LocalHosts(Arc::clone(&local)));
        Self::serve(hosts, Some(local), Some(folder))
    }

    /// Whose instances are these.
    pub(crate) fn on(hosts: Box<dyn Hosts>) -> Self {
        Self::serve(hosts, None, None)
    }

    fn serve(hosts: Box<dyn Hosts>, local: Option<Arc<Local>>, folder: Option<tempfile::TempDir>) -> Self {
        let fake = Arc::new(Fake {
            hosts,
            local,
            world: tokio::sync::Mutex::default(),
            faults: Mutex::default(),
            arn: Mutex::new("arn:aws:iam::123456789012:user/student".to_owned()),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(serve(listener, Arc::clone(&fake)));
        Self { fake, runtime: Some(runtime), url, folder }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The switches, to be set.
    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.fake.faults()
    }

    /// Makes the next `times` calls of `action` fail with `code`.
    pub(crate) fn fail(&self, action: &str, code: &str, times: u32) {
        self.fail_later(action, code, 0, times);
    }

    /// As [`Cloud::fail`], when so many have been answered.
    pub(crate) fn fail_later(&self, action: &str, code: &str, after: u32, times: u32) {
        let refused = refused(code, format!("planned: {code}"));
        let action = action.to_owned();
        self.faults().planned.push_back(Planned { action, after, times, when: When::Instead, refused });
    }

    /// Carries out the next call of `action` and closes the connection without an answer.
    pub(crate) fn lose_answer(&self, action: &str) {
        let refused = refused("lost", "");
        let action = action.to_owned();
        self.faults().planned.push_back(Planned { action, after: 0, times: 1, when: When::Lost, refused });
    }

    pub(crate) fn set_arn(&self, arn: &str) {
        *self.fake.arn.lock().unwrap() = arn.to_owned();
    }

    /// Looks at the ledger, or changes it behind labhost's back.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.runtime().block_on(self.fake.world.lock()))
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until the fake is dropped")
    }

    /// From now on two living members of one name are a violation. Labs that replace members have them for a while.
    pub(crate) fn forbid_duplicates(&self) {
        self.with(|world| world.is_duplicate_forbidden = true);
    }

    /// What was not allowed so far; not asserted any more when the fake is dropped.
    pub(crate) fn take_violations(&self) -> Vec<String> {
        self.with(|world| std::mem::take(&mut world.violations))
    }

    /// What a lab has left, in words.
    pub(crate) fn left(&self) -> Vec<String> {
        self.with(|world| world.left())
    }

    /// How many answers nobody has read to their end.
    pub(crate) fn unread(&self) -> usize {
        self.with(|world| world.pages.len())
    }

    pub(crate) fn living(&self) -> Vec<Machine> {
        self.with(|world| {
            self.fake.look_at_hosts(world);
            let living = |it: &&Machine| it.is_living() && !it.tags.contains_key("foreign");
            world.machines.iter().filter(living).cloned().collect()
        })
    }

    /// How often each action was called since the last time this was asked.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        self.with(|world| std::mem::take(&mut world.calls))
    }

    /// An instance of somebody else's, with these tags.
    pub(crate) fn add_foreign(&self, id: &str, tags: &[(&str, &str)]) {
        let mut tags: BTreeMap<String, String> =
            tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        tags.insert("foreign".to_owned(), "yes".to_owned());
        self.with(|world| {
            world.machines.push(Machine {
                id: id.to_owned(),
                kind: "t2.micro".to_owned(),
                image: "ami-0".to_owned(),
                life: Life::Running,
                hidden: 0,
                looks: 0,
                forgotten_calls: 0,
                forgotten_looks: 0,
                is_dying: false,
                index: 0,
                token: format!("token-{id}"),
                key: "other".to_owned(),
                groups: Vec::new(),
                subnet: "subnet-0a".to_owned(),
                address: "203.0.113.99".to_owned(),
                private: "203.0.113.99".to_owned(),
                launched_at_s: 1_700_000_000,
                reason: String::new(),
                tags,
                volume: format!("vol-{id}"),
                disk_stays: false,
                interface: format!("eni-{id}"),
                lingering: 0,
                user_data: String::new(),
            });
        });
    }

    /// A group called `name` that has no tag of labhost's.
    pub(crate) fn add_foreign_group(&self, name: &str, lets_in: Option<&str>) {
        self.with(|world| {
            let rules = lets_in.map(|id| Rule {
                protocol: "tcp".to_owned(),
                from: "1".to_owned(),
                to: "2".to_owned(),
                source: format!("group {id}"),
            });
            world.groups.push(world::Group {
                id: format!("sg-{name}"),
                name: name.to_owned(),
                rules: rules.into_iter().collect(),
                tags: BTreeMap::from([("foreign".to_owned(), "yes".to_owned())]),
                hidden: 0,
            });
        });
    }

    /// A key of somebody else's.
    pub(crate) fn add_foreign_key(&self, name: &str, public: &str) {
        self.with(|world| {
            world.keys.push(world::Key {
                id: format!("key-{name}"),
                name: name.to_owned(),
                public: public.to_owned(),
                tags: BTreeMap::from([("foreign".to_owned(), "yes".to_owned())]),
            });
        });
    }

    /// Gives an instance another host key behind labhost's back.
    pub(crate) fn set_host_key(&self, id: &str, secret: &str) {
        self.runtime().block_on(self.fake.local().set_host_key(id, secret)).unwrap();
    }

    /// The program on the instances that controls their services.
    pub(crate) fn service_program(&self) -> std::path::PathBuf {
        let folder = self.folder.as_ref().expect("only a cloud of local instances has it here");
        folder.path().join("cloud/local/bin/labhost-service")
    }

    /// Opens or closes the SSH servers of all instances.
    pub(crate) fn set_ssh(&self, is_open: bool) {
        self.runtime().block_on(self.fake.local().set_ssh(is_open)).unwrap();
    }

    /// When the instances end by themselves, in seconds since the epoch.
    pub(crate) fn guards(&self) -> Vec<u64> {
        let listed = self.runtime().block_on(self.fake.local().list()).unwrap();
        listed.into_iter().map(|it| it.expires_at_s).collect()
    }

    /// The public half of a private key.
    pub(crate) fn public_half(&self, path: &Path) -> String {
        let output = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(' ').take(2).collect::<Vec<_>>().join(" ").trim().to_owned()
    }

    /// Does what StopInstances does, which labhost never calls: somebody stops a lab in AWS's console, or the
    /// Learner Lab between two sessions.
    pub(crate) fn stop_instance(&self, id: &str) {
        self.runtime().block_on(self.fake.hosts.terminate(&[id.to_owned()]));
        self.with(|world| {
            let it = world.machines.iter_mut().find(|it| it.id == id).expect("it exists");
            it.life = Life::Stopping;
        });
    }

    /// What StartInstances does, called by somebody else.
    pub(crate) fn start_instance(&self, id: &str) {
        let address = self.fake.hosts.start(id);
        self.with(|world| {
            let it = world.machines.iter_mut().find(|it| it.id == id).expect("it exists");
            it.life = Life::Pending;
            it.address = address.map_or_else(|| it.address.clone(), |address| address.to_string());
            self.fake.hosts.open(world.doors());
        });
    }

    /// Ends an instance as if somebody had done so in AWS's console.
    pub(crate) fn kill(&self, id: &str) {
        self.runtime().block_on(self.fake.hosts.terminate(&[id.to_owned()]));
        self.with(|world| {
            let it = world.machines.iter_mut().find(|it| it.id == id).expect("it exists");
            it.life = Life::Terminated;
        });
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let violations = self.with(|world| std::mem::take(&mut world.violations));
        let removed = self.runtime().block_on(self.fake.hosts.remove_all());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if !std::thread::panicking() {
            assert_eq!(violations, Vec::<String>::new(), "no client of EC2 may do this");
            assert_eq!(removed, Vec::<String>::new(), "real instances are left");
        }
    }
}

impl Fake {
    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self) -> &Arc<Local> {
        self.local.as_ref().expect("only a cloud of local instances can do this")
    }

    /// Brings the ledger up to what has happened to the real instances meanwhile.
    fn look_at_hosts(&self, world: &mut World) {
        for it in &mut world.machines {
            match self.hosts.is_alive(&it.id) {
                Some(false) => it.ended(),
                Some(true) if it.life == Life::ShuttingDown => it.looks = it.looks.max(1),
                _ => {}
            }
        }
    }

    /// Keeps the SSH servers of all instances closed for a while.
    async fn close_ssh_for(&self, time: Duration) {
        self.local().set_ssh(false).await.unwrap();
        let local = Arc::clone(self.local());
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            // The test may have ended meanwhile.
            let _ = local.set_ssh(true).await;
        });
    }

    /// `None` closes the connection.
    async fn answer(&self, request: Request) -> Option<Answer> {
        let mut params = Params::parse(&request.body);
        let mut world = self.world.lock().await;
        let number = world.number();
        let action = params.take("Action").unwrap_or_default();
        let service = if action == "GetCallerIdentity" { "sts" } else { "ec2" };
        let signed = format!("/us-east-1/{service}/aws4_request");
        if !request.authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIDTEST/")
            || !request.authorization.contains(&signed)
        {
            world.violations.push(format!("{action} is not signed for us-east-1: {}", request.authorization));
        }
        let version = params.take("Version").unwrap_or_default();
        let is_dry = params.flag("DryRun");
        if is_dry && (action.starts_with("Describe") || action.starts_with("Get")) {
            world.violations.push(format!("{action} is only tried, although it changes nothing"));
        }
        world.calls.push(Call { action: action.clone(), is_dry });
        let strike = self.faults().next_strike(&action);
        if let Some(strike) = strike.filter(|it| !it.is_carried_out) {
            strike.fall();
            return None;
        }
        let planned = self.faults().next(&action);
        if let Some((When::Instead, refused)) = &planned {
            return Some(if service == "sts" { refused.sts_answer() } else { refused.answer(number) });
        }
        if action == "GetCallerIdentity" && version == "2011-06-15" {
            let arn = self.arn.lock().unwrap().clone();
            return Some(Answer { status: 200, body: reads::caller_identity(&arn) });
        }
        if version != "2016-11-15" {
            world.violations.push(format!("{action}: version {version:?}"));
        }
        self.look_at_hosts(&mut world);
        world.items_per_page = self.faults().items_per_page;
        let reply = self.act(&mut world, &action, &mut params, is_dry).await;
        self.hosts.open(world.doors());
        world.check_members();
        if let Some(strike) = strike {
            strike.fall();
            return None;
        }
        if params.filter_values_most > FILTER_VALUES_MAX {
            let most = params.filter_values_most;
            return Some(
                refused(
                    "FilterLimitExceeded",
                    format!("The maximum number of filter values is {FILTER_VALUES_MAX}, not {most}"),
                )
                .answer(number),
            );
        }
        let leftover = params.leftover();
        if reply.is_ok() && !leftover.is_empty() {
            world.violations.push(format!("{action}: unknown parameters {leftover:?}"));
        }
        if planned.is_some() {
            return None;
        }
        Some(match reply {
            Ok(inner) => xml::success(&action, number, &inner),
            Err(refused) => refused.answer(number),
        })
    }

    async fn act(
        &self,
        world: &mut World,
        action: &str,
        params: &mut Params,
        is_dry: bool,
    ) -> Result<xml::Xml, xml::Refused> {
        match action {
            "DescribeInstances" => reads::describe_instances(world, params),
            "DescribeImages" => reads::describe_images(world, params),
            "DescribeVpcs" => reads::describe_vpcs(world, params),
            "DescribeSubnets" => reads::describe_subnets(world, params),
            "DescribeInstanceTypes" => reads::describe_instance_types(params),
            "DescribeKeyPairs" => reads::describe_key_pairs(world, params),
            "DescribeSecurityGroups" => reads::describe_security_groups(world, params),
            "DescribeNetworkInterfaces" => reads::describe_network_interfaces(world, params),
            "DescribeVolumes" => reads::describe_volumes(world, params),
            "DescribeTags" => reads::describe_tags(world, params),
            "GetConsoleOutput" => reads::console_output(self, world, params),
            "RunInstances" => acts::run_instances(self, world, params, is_dry).await,
            "TerminateInstances" => acts::terminate_instances(self, world, params, is_dry).await,
            "DeleteVolume" => acts::delete_volume(world, params, is_dry),
            "StartInstances" => acts::start_instances(self, world, params, is_dry),
            "CreateTags" => acts::create_tags(world, params, is_dry),
            "ImportKeyPair" => acts::import_key_pair(world, params, is_dry),
            "DeleteKeyPair" => acts::delete_key_pair(world, params, is_dry),
            "CreateSecurityGroup" => acts::create_security_group(self, world, params, is_dry),
            "AuthorizeSecurityGroupIngress" => acts::authorize(world, params, is_dry),
            "RevokeSecurityGroupIngress" => acts::revoke(world, params, is_dry),
            "DeleteSecurityGroup" => acts::delete_security_group(world, params, is_dry),
            _ => {
                world.violations.push(format!("unknown action {action}"));
                Err(refused(
                    "InvalidAction",
                    format!("The action {action} is not valid for this web service."),
                ))
            }
        }
    }
}

async fn serve(listener: TcpListener, fake: Arc<Fake>) {
    while let Ok((stream, _)) = listener.accept().await {
        let fake = Arc::clone(&fake);
        tokio::spawn(async move {
            let mut connection = Connection::new(stream);
            while let Some(request) = connection.request().await {
                let Some(answer) = fake.answer(request).await else { return };
                if connection.answer(&answer).await.is_none() {
                    return;
                }
            }
        });
    }
}

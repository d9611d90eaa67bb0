//! The same recipes against moto's server, an EC2 endpoint that is not ours, as far as it goes: the shape of requests
//! and answers is judged by code that has never seen labhost.
//!
//! `.ci/with-moto COMMAND` installs and starts it and sets LABHOST_MOTO to its address. Without that nothing is run,
//! and that is said. Nobody is contacted at the addresses that it gives to instances: it invents them.

use std::{
    env,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::lab::{Lab, SMALL, WHOLE};

/// The server's address, `127.0.0.1:PORT`.
const ADDRESS: &str = "LABHOST_MOTO";
/// It answers within milliseconds; the machine may be busy.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// An image of `moto-images.json`: the newest one of Canonical's.
const IMAGE: &str = "ami-0123456789abcdef0";

/// Whether a difference is there.
type Holds = fn(&Moto) -> bool;

/// How moto differs from EC2, and so from the fake, where it matters here. Each is looked at by the test
/// [`differences_are_as_listed`], so that one that goes is noticed.
const DIFFERENCES: [(&str, Holds); 8] = [
    ("takes any signature", |moto| moto.call("DescribeVpcs", &[]).contains("<vpcId>")),
    ("ignores parameters that it does not know", |moto| {
        moto.call("DescribeVpcs", &[("Nonsense", "1")]).contains("<vpcId>")
    }),
    ("breaks at an unknown action instead of refusing it", |moto| {
        moto.call("NoSuchAction", &[]).starts_with("HTTP/1.1 500")
    }),
    ("launches again with a token that was used", |moto| {
        let (one, other) = (moto.launch("token", "1"), moto.launch("token", "1"));
        one != other && !one.is_empty()
    }),
    (
        "has instances running at the first look after the launch, and terminated at the first after the end",
        |moto| {
            let ids = moto.launch("at-once", "1");
            let running = moto.states(&ids) == ["running"];
            moto.end(&ids);
            running && moto.states(&ids) == ["terminated"]
        },
    ),
    ("deletes a security group that instances use", |moto| {
        let made = moto.call("CreateSecurityGroup", &[("GroupName", "used"), ("GroupDescription", "used")]);
        let group = values(&made, "groupId").remove(0);
        let launched = moto.call("RunInstances", &launching("uses", "1", &[("SecurityGroupId.1", &group)]));
        let deleted = moto.call("DeleteSecurityGroup", &[("GroupId", &group)]);
        values(&launched, "groupId").contains(&group) && deleted.starts_with("HTTP/1.1 200")
    }),
    ("has no limit of instances", |moto| moto.launch("many", "60").len() == 60),
    ("keeps the tags of what is gone", |moto| {
        let tags = [
            ("TagSpecification.1.ResourceType", "instance"),
            ("TagSpecification.1.Tag.1.Key", "course"),
            ("TagSpecification.1.Tag.1.Value", "gone"),
        ];
        let ids = values(&moto.call("RunInstances", &launching("tagged", "1", &tags)), "instanceId");
        moto.end(&ids);
        values(&moto.call("DescribeTags", &[]), "resourceId").contains(&ids[0])
    }),
];

/// There are some that no call shows: it has only the images that `moto-images.json` gives it, no tags on network interfaces,
/// invented addresses and console output, and makes none of the faults in `fake/faults.rs`. Therefore `run`, `bench`,
/// `ssh` and `extend` end at the fake, whose instances are there.
#[test]
fn differences_are_as_listed() {
    let Some(moto) = Moto::get("moto::differences_are_as_listed") else { return };
    for (words, holds) in DIFFERENCES {
        assert!(holds(&moto), "moto no longer {words}: change the list");
    }
}

#[test]
fn nine_instances_from_provision_to_stop() {
    let Some(moto) = Moto::get("moto::nine_instances_from_provision_to_stop") else { return };
    let lab = moto.lab();
    lab.set_topology(WHOLE);
    lab.plan().expect(10).says("add      instance large-4").says("there would be 9 instances with 14 vCPU");
    assert_eq!(moto.left(), Vec::<String>::new(), "a plan makes nothing");

    lab.provision().expect(0).says("4 launched (large-1, large-2, large-3, large-4)").says(IMAGE);
    moto.check_nine_instances(&lab);
    moto.check_groups(&lab);
    let (before, instances) = (moto.left(), lab.instances());

    lab.provision().expect(0).says("4 kept").says("1 kept");
    assert_eq!((moto.left(), lab.instances()), (before.clone(), instances), "a second run changes nothing");
    lab.plan().expect(0).says("keep     instance lb-1");
    assert_eq!(moto.left(), before);

    lab.stop().expect(0);
    assert_eq!(moto.left(), Vec::<String>::new());
    lab.stop().expect(0).says("nothing to do");
}

#[test]
fn doctor_makes_nothing() {
    let Some(moto) = Moto::get("moto::doctor_makes_nothing") else { return };
    let lab = moto.lab();
    lab.set_topology(SMALL);
    let examine = || lab.labhost(&["--provider", "ec2", "doctor"]);
    examine().expect(0).says("nothing is refused");
    assert_eq!(moto.left(), Vec::<String>::new());
    lab.provision().expect(0);
    let before = moto.left();
    examine().expect(0).says("this account permits all");
    assert_eq!(moto.left(), before);
    lab.stop().expect(0);
    assert_eq!(moto.left(), Vec::<String>::new());
}

#[test]
fn changed_topology_is_followed_and_lost_state_found_again() {
    let Some(moto) = Moto::get("moto::changed_topology_is_followed_and_lost_state_found_again") else {
        return;
    };
    let lab = moto.lab();
    lab.set_topology(SMALL);
    lab.provision().expect(0);
    lab.set_topology(&SMALL.replace("count: 2", "count: 1").replace("t2.large", "t2.small"));
    lab.provision().expect(0).says("terminated");
    let listed = moto.call("DescribeInstances", &[("Filter.1.Name", "instance-state-name"), RUNNING]);
    assert_eq!(values(&listed, "instanceType"), ["t2.micro", "t2.small"]);
    lab.lose_state();
    lab.stop().expect(0);
    assert_eq!(moto.left(), Vec::<String>::new());
}

const RUNNING: (&str, &str) = ("Filter.1.Value.1", "running");

/// moto's server with an empty account.
struct Moto {
    address: String,
    /// One test at a time has the account.
    _turn: MutexGuard<'static, ()>,
}

impl Moto {
    /// `None`, and a word about it, where there is none.
    fn get(test: &str) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let Ok(address) = env::var(ADDRESS) else {
            // Past the test runner's capture.
            let _ = writeln!(
                std::io::stderr(),
                "\n*** NOT RUN: {test}: {ADDRESS} is not set; use .ci/with-moto cargo test ...\n"
            );
            return None;
        };
        assert!(address.starts_with("127.0.0.1:"), "{ADDRESS} must be an address on loopback, not {address}");
        let moto = Self { address, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) };
        assert!(moto.post("/moto-api/reset", "").starts_with("HTTP/1.1 200"), "moto can be emptied");
        Some(moto)
    }

    fn lab(&self) -> Lab {
        Lab::at(&format!("http://{}", self.address), &[("LABHOST_EC2_PACE", "0.02")])
    }

    /// The whole answer, head and body.
    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("moto's server listens");
        stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=AK/20250101/us-east-1/ec2/aws4_request, Signature=none\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("moto's server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("moto's server answers in time");
        answer
    }

    /// A call of the test's own. Values are sent as they are, so they may hold nothing that a form escapes.
    fn call(&self, action: &str, params: &[(&str, &str)]) -> String {
        let mut body = format!("Action={action}&Version=2016-11-15");
        params.iter().for_each(|(name, value)| body.push_str(&format!("&{name}={value}")));
        self.post("/", &body)
    }

    /// Ids of new instances.
    fn launch(&self, token: &str, count: &str) -> Vec<String> {
        values(&self.call("RunInstances", &launching(token, count, &[])), "instanceId")
    }

    fn end(&self, ids: &[String]) {
        self.call("TerminateInstances", &[("InstanceId.1", &ids[0])]);
    }

    fn states(&self, ids: &[String]) -> Vec<String> {
        let answer = self.call("DescribeInstances", &[("InstanceId.1", &ids[0])]);
        values(&answer, "name").into_iter().filter(|name| !name.is_empty()).collect()
    }

    /// Everything that a lab could leave, by moto's own account of it.
    fn left(&self) -> Vec<String> {
        let state = "Filter.1.Name";
        let living = ["pending", "running", "stopping", "stopped", "shutting-down"];
        let living = (1..).zip(living).map(|(number, state)| (format!("Filter.1.Value.{number}"), state));
        let living: Vec<_> = living.collect();
        let mut filters = vec![(state, "instance-state-name")];
        filters.extend(living.iter().map(|(name, value)| (name.as_str(), *value)));
        let mut left = values(&self.call("DescribeInstances", &filters), "instanceId");
        left.extend(values(&self.call("DescribeVolumes", &[]), "volumeId"));
        left.extend(values(&self.call("DescribeNetworkInterfaces", &[]), "networkInterfaceId"));
        left.extend(values(&self.call("DescribeKeyPairs", &[]), "keyName"));
        let groups = values(&self.call("DescribeSecurityGroups", &[]), "groupName");
        left.extend(groups.into_iter().filter(|name| name != "default"));
        left.sort();
        left.dedup();
        left
    }

    /// What labhost has written down is what moto has.
    fn check_nine_instances(&self, lab: &Lab) {
        let answer = self.call("DescribeInstances", &[]);
        let mut there = values(&answer, "instanceId");
        let mut known: Vec<_> = lab.instances().into_iter().map(|it| it.id).collect();
        there.sort();
        known.sort();
        assert_eq!(there, known);
        let types = values(&answer, "instanceType");
        let count = |name: &str| types.iter().filter(|it| *it == name).count();
        assert_eq!((count("t2.large"), count("t2.micro")), (5, 4));
        assert!(values(&answer, "imageId").iter().all(|image| image == IMAGE));
        assert!(values(&answer, "httpTokens").iter().all(|tokens| tokens == "required"), "IMDSv2");
        let zones = values(&answer, "availabilityZone");
        assert!(zones.iter().any(|zone| *zone != zones[0]), "fleets are spread over zones: {zones:?}");
    }

    /// The rules as the recipes have them.
    fn check_groups(&self, lab: &Lab) {
        let answer = self.call("DescribeSecurityGroups", &[]);
        let name = |of: &str| format!("labhost-{}-{of}", lab.tag());
        let names = values(&answer, "groupName");
        assert!(names.contains(&name("lab-lb")) && names.contains(&name("lab-instances")), "{names:?}");
        let mut ports: Vec<_> = values(&answer, "fromPort");
        ports.sort();
        assert_eq!(ports, ["22", "22", "80", "8000", "8222"]);
        let callers = answer.matches("<cidrIp>198.51.100.7/32</cidrIp>").count();
        assert_eq!(callers, 3, "SSH of both groups and the balancer's port are the caller's");
    }
}

/// A launch of one or more instances.
fn launching<'a>(token: &'a str, count: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut params = vec![("ImageId", IMAGE), ("InstanceType", "t2.micro"), ("ClientToken", token)];
    params.extend([("MinCount", count), ("MaxCount", count)]);
    params.extend_from_slice(more);
    params
}

/// The texts of all elements of this name.
fn values(xml: &str, name: &str) -> Vec<String> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(&start).skip(1);
    parts.filter_map(|part| part.split_once(&end)).map(|(text, _)| text.to_owned()).collect()
}

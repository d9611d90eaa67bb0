//! Anything may go wrong at any time: seeded sequences of runs, plans, changes and teardowns of a lab of two
//! instances, with faults of AWS, kills and interference in between. Whatever happens, no member of a fleet is ever
//! there twice, the next undisturbed run succeeds, and after `stop` the ledger is empty.
//!
//! LABHOST_CHAOS names the seeds: `17` one of them, `0..500` so many. A failure prints its seed and what was done.
//! `host/tests/ec2/chaos.sh 500` runs hundreds.

use std::{
    env, fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    fake::{Cloud, Faults, Life, faults::Strike},
    lab::{Ended, Lab},
};

const SEEDS: &str = "LABHOST_CHAOS";
/// Two minutes or so on two cores.
const SEEDS_DEFAULT: Range<u64> = 0..60;
/// Labs that are tried at the same time; each waits most of its time.
const LABS_AT_ONCE: usize = 4;
const STEPS_MAX: u64 = 7;
/// Every third seed's answers come in pages of so many.
const SMALL_PAGE: usize = 2;
const PROVISION: &str = "recipes/provision.rhai";

/// Calls that change something, and their codes beside those that any call may meet.
const CHANGING: [(&str, &[&str]); 6] = [
    ("RunInstances", &["InsufficientInstanceCapacity", "InstanceLimitExceeded", "VcpuLimitExceeded"]),
    ("TerminateInstances", &["IncorrectInstanceState"]),
    ("CreateSecurityGroup", &["SecurityGroupLimitExceeded"]),
    ("AuthorizeSecurityGroupIngress", &["RulesPerSecurityGroupLimitExceeded"]),
    ("DeleteSecurityGroup", &["DependencyViolation"]),
    ("ImportKeyPair", &["KeyPairLimitExceeded"]),
];
const READING: [&str; 4] =
    ["DescribeInstances", "DescribeSecurityGroups", "DescribeKeyPairs", "DescribeTags"];
const ANYWHERE: [&str; 4] = ["RequestLimitExceeded", "UnauthorizedOperation", "InternalError", "Unavailable"];

#[test]
fn no_sequence_of_faults_and_kills_leaks_or_doubles_an_instance() {
    crate::lab::programs();
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return failed;
                }
                failed.extend(attempt(seed).err());
            }
        };
        let threads: Vec<_> = (0..LABS_AT_ONCE).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("failures are caught")).collect()
    });
    assert!(failed.is_empty(), "{} of {seeds:?} failed:\n{}", failed.len(), failed.join("\n"));
}

fn seeds() -> Range<u64> {
    let Ok(text) = env::var(SEEDS) else { return SEEDS_DEFAULT };
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{SEEDS} is 17 or 0..500, not {text}"));
    match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&text)..number(&text) + 1,
    }
}

/// Tries one seed; the error tells its story.
fn attempt(seed: u64) -> Result<(), String> {
    let mut story = Story { seed, dice: Dice(seed), recipe: "", told: Vec::new() };
    match catch_unwind(AssertUnwindSafe(|| story.play())) {
        Ok(()) => Ok(()),
        Err(_) => {
            println!("{story}");
            Err(format!("{SEEDS}={seed}"))
        }
    }
}

/// splitmix64, https://prng.di.unimi.it/splitmix64.c
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What one seed does, and what it has done.
struct Story {
    seed: u64,
    dice: Dice,
    /// One that the topology is enough for.
    recipe: &'static str,
    told: Vec<String>,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--- seed {}; again with {SEEDS}={}\n{}", self.seed, self.seed, self.told.join("\n"))
    }
}

/// How a labhost is killed.
#[derive(Debug, Clone, Copy)]
enum Kill {
    /// At a line of the journal: `before:3`.
    Line(&'static str, u64),
    /// During a call.
    Call { action: Option<&'static str>, calls: u32, is_carried_out: bool },
    /// After so many milliseconds; what that hits differs from time to time.
    Time(u64),
}

impl Story {
    fn play(&mut self) {
        let cloud = Cloud::start();
        cloud.forbid_duplicates();
        let lab = Lab::new(&cloud);
        self.set_topology(&lab);
        if self.dice.one_in(3) {
            self.interrupt_a_launch(&cloud, &lab);
        }
        for _ in 0..=self.dice.below(STEPS_MAX) {
            self.step(&cloud, &lab);
        }
        self.calm(&cloud);
        self.end_well(&cloud, &lab);
    }

    /// Two instances, in one fleet or in two; sometimes one of them is not wanted.
    fn set_topology(&mut self, lab: &Lab) {
        let app = |count: u32| {
            format!("#{{ name: \"app\", type: \"t2.micro\", count: {count}, cluster: \"cluster1\" }},")
        };
        let fleets = match self.dice.below(4) {
            0 => app(1),
            1 => app(2),
            _ => app(1) + "#{ name: \"lb\", type: \"t2.large\", count: 1, role: \"balancer\" },",
        };
        self.recipe = if fleets.contains("balancer") { "recipes/run.rhai" } else { PROVISION };
        self.tell(format!("topology {fleets}"));
        lab.set_topology(&fleets);
    }

    fn step(&mut self, cloud: &Cloud, lab: &Lab) {
        self.calm(cloud);
        if self.dice.one_in(5) {
            self.set_topology(lab);
        }
        if self.dice.one_in(4) {
            self.interfere(cloud);
        }
        for _ in 0..self.dice.below(3) {
            self.break_something(cloud);
        }
        // What AWS does every day.
        if self.dice.one_in(2) {
            let mut faults = cloud.faults();
            (faults.hidden_looks, faults.pending_looks, faults.shutting_down_looks) = (4, 2, 2);
        }
        let kill = if self.dice.one_in(2) { Some(self.kill()) } else { None };
        let stop = ["--provider", "ec2", "recipes/stop.rhai", "--confirm"];
        match self.dice.below(10) {
            0 => self.plan(cloud, lab),
            1 => drop(self.run(cloud, lab, &["--provider", "ec2", "extend", "3h"], kill)),
            2 | 3 => drop(self.run(cloud, lab, &["--provider", "ec2", "--prune", self.recipe], kill)),
            4 | 5 => {
                if self.dice.one_in(3) && lab.file("artifacts").exists() {
                    self.tell("the state is lost".to_owned());
                    lab.lose_state();
                    cloud.with(|world| {
                        world.orphans = world.machines.iter().map(|it| it.id.clone()).collect();
                    });
                }
                if self.run(cloud, lab, &stop, kill).code == Some(0) {
                    assert_eq!(cloud.left(), Vec::<String>::new(), "a teardown says that nothing is left");
                }
            }
            _ => drop(self.run(cloud, lab, &["--provider", "ec2", "--prune", PROVISION], kill)),
        }
    }

    /// The worst moment of all: AWS has launched, and neither a file nor a listing knows.
    fn interrupt_a_launch(&mut self, cloud: &Cloud, lab: &Lab) {
        cloud.faults().hidden_looks = 3 + self.dice.below(4) as u32;
        let action = Some("RunInstances");
        let kill = Kill::Call { action, calls: 0, is_carried_out: true };
        self.run(cloud, lab, &["--provider", "ec2", PROVISION], Some(kill));
    }

    fn plan(&mut self, cloud: &Cloud, lab: &Lab) {
        let before = cloud.left();
        self.run(cloud, lab, &["--provider", "ec2", "--plan", PROVISION], None);
        let after = cloud.left();
        let is_new = |thing: &&String| !before.contains(thing) && !thing.ends_with("(Running)");
        assert_eq!(
            after.iter().filter(is_new).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "a plan makes nothing"
        );
    }

    /// Runs labhost, whose end must be one of those that are foreseen.
    fn run(&mut self, cloud: &Cloud, lab: &Lab, words: &[&str], kill: Option<Kill>) -> Ended {
        let env = match kill {
            Some(Kill::Line(when, line)) => Some(("LABHOST_KILL_AT_JOURNAL_LINE", format!("{when}:{line}"))),
            _ => None,
        };
        let ended = lab.labhost_watched(words, env, |victim| self.aim(cloud, victim, kill));
        cloud.faults().strike = None;
        self.tell(format!("{} with {kill:?}: {ended}", words.join(" ")));
        let foreseen = [Some(0), Some(4), Some(5), Some(8), Some(10)];
        let is_killed = kill.is_some() && ended.code.is_none();
        let has_nothing_to_extend = words.contains(&"extend") && ended.code == Some(2);
        assert!(
            foreseen.contains(&ended.code) || is_killed || has_nothing_to_extend,
            "this end is not foreseen: {:?}",
            ended.code
        );
        assert_eq!(cloud.take_violations(), Vec::<String>::new());
        ended
    }

    fn aim(&self, cloud: &Cloud, victim: Pid, kill: Option<Kill>) {
        match kill {
            Some(Kill::Call { action, calls, is_carried_out }) => {
                cloud.faults().strike = Some(Strike { victim, action, calls, is_carried_out });
            }
            Some(Kill::Time(ms)) => {
                std::thread::sleep(Duration::from_millis(ms));
                // It may have ended, but it has not been waited for, so the number is still its own.
                let _ = kill_process(victim, Signal::KILL);
            }
            Some(Kill::Line(..)) | None => {}
        }
    }

    fn kill(&mut self) -> Kill {
        match self.dice.below(8) {
            0 => Kill::Time(self.dice.below(700)),
            1 | 2 => Kill::Line(self.dice.pick(&["before", "after"]), 1 + self.dice.below(14)),
            3 => Kill::Call {
                action: None,
                calls: self.dice.below(16) as u32,
                is_carried_out: self.dice.one_in(2),
            },
            _ => {
                let (action, _) = self.dice.pick(&CHANGING);
                Kill::Call {
                    action: Some(action),
                    calls: self.dice.below(2) as u32,
                    is_carried_out: !self.dice.one_in(4),
                }
            }
        }
    }

    /// One of the faults that AWS has.
    fn break_something(&mut self, cloud: &Cloud) {
        let looks = 1 + self.dice.below(4) as u32;
        let fault = self.dice.below(11);
        self.tell(format!("fault {fault} ({looks})"));
        match fault {
            0 => cloud.faults().pending_looks = looks,
            // Often longer than the run lives.
            1 => cloud.faults().hidden_looks = 2 * looks,
            2 => cloud.faults().hidden_groups = looks,
            3 => cloud.faults().shutting_down_looks = looks,
            4 => cloud.faults().lingering_interfaces = looks,
            5 => cloud.faults().is_launch_partial = true,
            6 => cloud.faults().dies_at_boot = true,
            7 => cloud.faults().expires_after = Some(self.dice.below(18) as u32),
            8 => {
                let (action, _) = self.dice.pick(&CHANGING);
                self.tell(format!("the answer to {action} is lost"));
                cloud.lose_answer(action);
            }
            9 => {
                let (action, code) = (self.dice.pick(&READING), self.dice.pick(&ANYWHERE));
                self.tell(format!("{action} fails with {code}"));
                cloud.fail(action, code, looks);
            }
            _ => {
                let (action, codes) = self.dice.pick(&CHANGING);
                let code =
                    if self.dice.one_in(2) { self.dice.pick(codes) } else { self.dice.pick(&ANYWHERE) };
                self.tell(format!("{action} fails with {code}"));
                cloud.fail(action, code, looks);
            }
        }
    }

    /// Somebody at AWS's console.
    fn interfere(&mut self, cloud: &Cloud) {
        let living = cloud.living();
        if living.is_empty() {
            return;
        }
        let id = living[self.dice.below(living.len() as u64) as usize].id.clone();
        if self.dice.one_in(2) {
            self.tell(format!("{id} is terminated by hand"));
            cloud.kill(&id);
        } else {
            self.tell("all are stopped by hand".to_owned());
            cloud.with(|world| {
                for it in world.machines.iter_mut().filter(|it| it.life == Life::Running) {
                    it.life = Life::Stopped;
                }
            });
        }
    }

    /// From now on nothing new goes wrong. What is not listed yet stays so.
    fn calm(&mut self, cloud: &Cloud) {
        let items_per_page = self.seed.is_multiple_of(3).then_some(SMALL_PAGE);
        *cloud.faults() = Faults { items_per_page, ..Faults::default() };
        cloud.with(|world| {
            world.machines.iter_mut().for_each(|it| (it.looks, it.lingering) = (0, 0));
            world.groups.iter_mut().for_each(|it| it.hidden = 0);
        });
    }

    /// One undisturbed run makes exactly the topology, and one teardown leaves nothing.
    fn end_well(&mut self, cloud: &Cloud, lab: &Lab) {
        lab.set_topology(
            r#"#{ name: "app", type: "t2.micro", count: 1, cluster: "cluster1" }, #{ name: "lb", type: "t2.large", count: 1, role: "balancer" }"#,
        );
        let words = ["--provider", "ec2", "--prune", "recipes/run.rhai"];
        let mut ended = self.run(cloud, lab, &words, None);
        // What had just died is only seen while it is waited for.
        if ended.text().contains("it has ended") {
            ended = self.run(cloud, lab, &words, None);
        }
        assert_eq!(ended.code, Some(0), "an undisturbed run succeeds");
        let mut names: Vec<_> = lab.instances().into_iter().map(|it| it.name).collect();
        names.sort();
        assert_eq!(names, ["app-1", "lb-1"]);
        assert_eq!(cloud.living().len(), 2);
        self.end(cloud, lab);
    }

    fn end(&mut self, cloud: &Cloud, lab: &Lab) {
        let ended = self.run(cloud, lab, &["--provider", "ec2", "recipes/stop.rhai", "--confirm"], None);
        assert_eq!(ended.code, Some(0), "an undisturbed teardown succeeds");
        assert_eq!(cloud.left(), Vec::<String>::new());
        assert!(!lab.file("artifacts/journal.ndjson").exists(), "the state is gone");
    }

    fn tell(&mut self, text: String) {
        self.told.push(text);
    }
}

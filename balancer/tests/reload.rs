//! Reading the configuration again while requests go on.

mod common;

use common::{Balancer, Load, Stub, config_over, eventually};
use serde_json::{Value, json};

on_both_drivers! {
    fn reload_under_load_fails_no_request(driver) {
        let stubs = [Stub::named("one"), Stub::named("two"), Stub::named("three")];
        let both = |range: &[usize]| {
            let chosen: Vec<Value> = range
                .iter()
                .map(|n| json!({ "id": format!("i-{n}"), "address": stubs[*n].address.to_string() }))
                .collect();
            json!({ "clusters": { "app": { "backends": chosen } } })
        };
        let config = config_over(&[], both(&[0, 1]));
        let balancer = Balancer::start(driver, config);
        let load = Load::start(balancer.address, 4);
        for backends in [[0, 1, 2].as_slice(), &[2], &[1, 2], &[0], &[0, 1]] {
            load.passes(100);
            balancer.reload(&config_over(&[], both(backends)));
        }
        load.passes(100);
        assert_eq!(load.finish(), Vec::<String>::new());
        assert!(stubs.iter().all(|stub| !stub.requests().is_empty()));
    }

    fn changed_address_under_load_fails_no_request(driver) {
        let (other, first, second) = (Stub::named("other"), Stub::named("first"), Stub::named("second"));
        let config = |moving: &Stub| config_over(&[&other, moving], json!({}));
        let balancer = Balancer::start(driver, config(&first));
        let load = Load::start(balancer.address, 4);
        for moving in [&second, &first, &second] {
            load.passes(100);
            let before = moving.requests().len();
            balancer.reload(&config(moving));
            assert_eq!(balancer.backend(1)["address"], moving.address.to_string());
            eventually("the new address is used", || moving.requests().len() > before);
        }
        load.passes(100);
        assert_eq!(load.finish(), Vec::<String>::new());
        assert_eq!(balancer.backend(1)["id"], "i-1");
        eventually("the old address finishes", || {
            balancer.status()["clusters"]["app"]["backends"].as_array().is_some_and(|all| all.len() == 2)
        });
    }

    fn invalid_configuration_under_load_fails_no_request_and_the_log_says_why(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let good = config_over(&[&one, &two], json!({}));
        let balancer = Balancer::start(driver, good.clone());
        let load = Load::start(balancer.address, 4);
        let mut twice = good.clone();
        twice["clusters"]["app"]["backends"][1]["id"] = json!("i-0");
        let mut nowhere = good.clone();
        nowhere["clusters"]["app"]["backends"][1]["address"] = json!("localhost");
        for (bad, why) in [
            ("".to_owned(), "not JSON: EOF while parsing"),
            (good.to_string().replace("\"app\"", "\"a/b\""), "clusters.a/b: a cluster's name is a path segment"),
            (twice.to_string(), "clusters.app.backends: the id `i-0` occurs twice"),
            (nowhere.to_string(), "clusters.app.backends[1].address: `localhost` is not an address and port"),
        ] {
            load.passes(50);
            std::fs::write(balancer.config_path(), bad).expect("written");
            balancer.signal("HUP");
            let line = balancer.wait_log(&[why]);
            assert!(line.contains("reload refused, the old configuration stays"), "{line}");
        }
        // A file that is gone is no configuration either.
        std::fs::remove_file(balancer.config_path()).expect("removed");
        balancer.signal("HUP");
        balancer.wait_log(&["balancer.json: No such file"]);
        load.passes(100);
        assert_eq!(balancer.status()["generation"], 0);
        balancer.reload(&good);
        load.passes(50);
        assert_eq!(load.finish(), Vec::<String>::new());
    }

    fn reload_keeps_the_numbers_of_kept_backends(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let balancer = Balancer::over(driver, &[&one], json!({}));
        for _ in 0..5 {
            assert_eq!(balancer.get("/app").status, 200);
        }
        balancer.reload(&config_over(&[&one, &two], json!({})));
        assert_eq!(balancer.backend(0)["requests"], 5);
        assert_eq!(balancer.backend(1)["requests"], 0);
    }

    fn reload_that_does_not_check_leaves_the_old_configuration(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({}));
        let good = std::fs::read_to_string(balancer.config_path()).expect("read");
        for (bad, why) in [
            ("{ nonsense", "not JSON"),
            (&good.replace("backends", "backend"), "did you mean `backends`"),
            (&good.replace("127.0.0.1:0", "127.0.0.1:1"), "`listen` changes only with a restart"),
        ] {
            std::fs::write(balancer.config_path(), bad).expect("written");
            balancer.signal("HUP");
            balancer.wait_log(&[why]);
            assert_eq!(balancer.get("/app").status, 200);
        }
    }
}

//! The whole way: run, use, run again, stop.

use crate::{
    fake::{Call, Cloud},
    lab::{Lab, WHOLE},
};

/// `Action x COUNT`, sorted.
fn counted(calls: &[Call]) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for call in calls {
        *counts.entry(call.action.clone()).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[test]
fn run_bench_run_again_and_stop() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.run().expect(0).says("The lab is up").says("dollars per hour");
    assert_eq!(cloud.living().len(), 3);
    println!("calls of a run: {:?}", counted(&cloud.take_calls()));
    lab.labhost(&["recipes/bench.rhai", "--requests", "50", "--clusters", "cluster1"]).expect(0);
    cloud.take_calls();
    let ids: Vec<_> = lab.instances().into_iter().map(|it| it.id).collect();
    lab.run().expect(0).says("2 kept");
    assert_eq!(ids, lab.instances().into_iter().map(|it| it.id).collect::<Vec<_>>());
    println!("calls of a re-run: {:?}", counted(&cloud.take_calls()));
    lab.stop_clean(&cloud);
    println!("calls of a stop: {:?}", counted(&cloud.take_calls()));
    lab.stop().expect(0).says("nothing to do");
}

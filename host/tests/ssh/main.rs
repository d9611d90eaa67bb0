//! One suite for every SSH server that labhost meets: OpenSSH's, and the one that local instances have.
//!
//! Each test is a function over a [`target::Target`]; the list at the end makes a module of tests for each server.
//! Both ends of every connection are on this machine.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

mod commands;
mod files;
mod processes;
mod sessions;
mod spread;
mod target;

/// Nothing here takes longer unless it hangs; the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until something is so; the deadline only bounds a failure.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < end, "never so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a file that a command on the host writes, with a process id in it.
async fn process_in(path: &Path) -> u32 {
    let read = || fs::read_to_string(path).ok()?.trim().parse().ok();
    until(&format!("a process id in {}", path.display()), || read().is_some()).await;
    read().unwrap()
}

/// Makes two modules of tests from lists of functions: `FILE, STATE OF THE SERVER: FUNCTIONS;`.
macro_rules! suite {
    ($($list:tt)*) => {
        suite_on! { openssh: $($list)* }
        suite_on! { embedded: $($list)* }
    };
}

macro_rules! suite_on {
    ($server:ident: $($file:ident, $state:ident: $($test:ident)*;)*) => {
        mod $server {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$file::$test(super::target::$server::$state().await).await;
            })*)*
        }
    };
}

suite! {
    commands, running:
        statuses_come_back_as_they_are
        a_failing_check_names_command_host_and_last_words
        the_streams_stay_apart_and_whole
        a_command_without_input_sees_its_end
        input_of_any_size_and_content_arrives
        output_beyond_the_limit_is_an_error_and_ends_the_command
        hostile_values_are_only_values
        a_missing_directory_is_named
        a_long_command_line_arrives
        at_its_timeout_the_whole_group_is_killed
        cancelled_the_whole_group_is_killed
        nobody_waiting_any_more_the_whole_group_is_killed
        given_up_while_it_starts_a_command_is_killed_too
        a_background_process_does_not_hold_its_command
        eight_run_at_once_and_more_wait
        ended_commands_make_room
        lines_come_while_the_command_runs;
    files, running:
        an_upload_sends_only_what_is_not_there
        a_text_is_written_and_a_file_downloaded
        what_cannot_be_uploaded_is_said_plainly
        a_full_disk_leaves_the_old_file_and_nothing_else
        an_upload_given_up_in_the_middle_leaves_the_old_file
        an_upload_killed_on_the_host_leaves_the_old_file
        an_upload_cut_in_the_middle_leaves_the_old_file;
    spread, running:
        the_first_gives_the_others_what_it_got
        it_is_sent_to_each_where_that_is_fast
        what_is_not_for_everybody_is_never_served
        only_the_token_opens
        a_host_that_never_asks_holds_nobody
        what_cannot_be_copied_is_sent_from_here
        half_a_copy_never_takes_the_old_files_place
        a_first_host_that_dies_holds_nobody
        a_server_ends_with_its_connection;
    sessions, running:
        a_cut_connection_is_an_error_of_its_own
        a_wrapper_killed_on_the_host_is_not_called_a_lost_connection
        a_changed_host_key_is_final_and_shows_both_fingerprints
        a_refused_login_key_is_final
        a_closed_session_leaves_no_process_and_no_file
        ssh_works_by_hand_from_any_directory
        readiness_is_seen_from_the_host;
    sessions, stopped:
        connect_waits_for_a_server_that_starts_late
        connecting_is_cancelled_at_once_and_leaves_no_process;
}

//! Machines that are not as one would like them: each gets the right word and exit code, and keeps what it has.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use support::{Machine, SEED, differences, text};

/// Runs a script of sh as root, with mounts of its own, in which `larder` applies to `$ROOT` what `$PROFILE` says.
fn run(machine: &Machine, script: &str) -> Output {
    machine.write("profile.yaml", SEED);
    let prelude = format!(
        "set -e; ROOT={root}; PROFILE=$ROOT/profile.yaml; LARDER={larder}; apply=\"$LARDER apply --root $ROOT --profile \
         $PROFILE\"; plan=\"$LARDER plan --root $ROOT --profile $PROFILE\"\n",
        root = machine.root().display(),
        larder = env!("CARGO_BIN_EXE_larder"),
    );
    Command::new("unshare").args(["--mount", "sh", "-c", &(prelude + script)]).output().unwrap()
}

fn ordinary() -> Machine {
    let machine = Machine::debian();
    machine.write("profile.yaml", SEED);
    machine.apply(SEED);
    machine
}

/// What is told of the place of a machine is another's for each.
fn wants(what: &str, output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{what}: {}", text(output));
    for word in words {
        assert!(text(output).contains(word), "{what}: wanted {word:?}, got {}", text(output));
    }
}

#[test]
fn what_does_not_matter_does_not_matter() {
    let wanted = ordinary().tree();
    // Where /tmp is hidden the program is opened before: it may stand below.
    for (what, script) in [
        ("umask 077", "umask 077; exec $apply"),
        ("umask 000", "umask 000; exec $apply"),
        ("20 open files", "exec prlimit --nofile=20:20 $apply"),
        ("a stack of 1 MiB", "exec prlimit --stack=1048576 $apply"),
        ("no core, no locked memory", "exec prlimit --core=0 --memlock=0 $apply"),
        ("no /proc", "mount -t tmpfs none /proc; exec $apply"),
        ("no /run", "mount -t tmpfs none /run; exec $apply"),
        ("no /dev/shm, no /sys", "mount -t tmpfs none /sys; mount -t tmpfs none /dev/shm; exec $apply"),
        (
            "/tmp noexec, full",
            "mount --bind $ROOT /mnt; exec 3<$LARDER; mount -t tmpfs -o noexec,size=4k none /tmp; exec /proc/self/fd/3 \
             apply --root /mnt --profile /mnt/profile.yaml",
        ),
        (
            "no /tmp at all",
            "mount --bind $ROOT /mnt; exec 3<$LARDER; mount -t tmpfs -o ro,mode=0 none /tmp; exec /proc/self/fd/3 apply \
             --root /mnt --profile /mnt/profile.yaml",
        ),
        ("no environment", "exec env -i $apply"),
        (
            "a hostile environment",
            "exec env -i PATH= HOME=/nonexistent LANG=zz_ZZ LC_ALL=/etc/passwd TZ=:/etc/shadow IFS=x \
          TMPDIR=/proc RUST_BACKTRACE=full RUST_LOG=trace LD_LIBRARY_PATH=/nonexistent XDG_RUNTIME_DIR=/x $apply",
        ),
        ("standard input, output and error closed", "exec $apply <&- >&- 2>&-"),
        ("standard error full", "exec $apply 2>/dev/full"),
        (
            "a working directory that is gone",
            "mkdir /tmp/gone.$$; cd /tmp/gone.$$; rmdir /tmp/gone.$$; exec $apply",
        ),
        ("SIGPIPE, SIGCHLD ignored", "trap '' PIPE CHLD; exec $apply"),
        (
            "a read-only /usr",
            "mount --bind $ROOT/usr $ROOT/usr; mount -o remount,ro,bind $ROOT/usr; exec $apply",
        ),
        (
            "its data on a file system of its own",
            "mkdir -p $ROOT/var/lib/larder; mount -t tmpfs -o mode=755 none $ROOT/var/lib/larder; $apply; \
             echo mine > $ROOT/etc/larder/registry/ghcr.io.yml; $apply; \
             grep -q mine $ROOT/var/lib/larder/state/kept/etc/larder/registry/ghcr.io.yml.edited-by-hand.*; $apply | \
             grep 'nothing to change'; mkdir $ROOT/copy; cp -a $ROOT/var/lib/larder/. $ROOT/copy; umount \
             $ROOT/var/lib/larder; cp -a $ROOT/copy/. $ROOT/var/lib/larder; rm -r $ROOT/copy",
        ),
        ("no network", "exec unshare --net $apply"),
        ("another host name, no names", "exec unshare --uts sh -c \"hostname ''; exec $apply\""),
    ] {
        let machine = Machine::debian();
        let output = run(&machine, script);
        wants(what, &output, 0, &[]);
        assert_eq!(differences(&wanted, &machine.tree()), [""; 0], "{what}");
    }
}

#[test]
fn what_stands_in_the_way_is_said_before_anything_is_touched() {
    for (what, script, words) in [
        (
            "a read-only /etc",
            "mount --bind $ROOT/etc $ROOT/etc; mount -o remount,ro,bind $ROOT/etc; exec $apply",
            &["error: write ", "/etc", "read-only file system: mount it writable"][..],
        ),
        (
            "a read-only /var",
            "mkdir -p $ROOT/var; mount --bind $ROOT/var $ROOT/var; mount -o remount,ro,bind $ROOT/var; exec $apply",
            &["/var", "read-only file system: mount it writable"],
        ),
        (
            "all of it read-only",
            "mount --bind $ROOT $ROOT; mount -o remount,ro,bind $ROOT; exec $apply",
            &["read-only file system: mount it writable"],
        ),
        (
            "another user",
            "chmod 755 $ROOT; exec setpriv --reuid=65534 --clear-groups $apply",
            &["error: apply writes root's files: run it as root"],
        ),
        (
            "no such root",
            "exec $LARDER apply --root /nonexistent --profile $PROFILE",
            &["error: open /nonexistent"],
        ),
        (
            "no systemd",
            "mount -t tmpfs none /run; exec $LARDER apply --profile $PROFILE",
            &["error: ", "systemd", "--root"],
        ),
        (
            "a folder for a profile",
            "exec $LARDER apply --root $ROOT --profile $ROOT/etc",
            &["etc", "directory"],
        ),
    ] {
        let machine = Machine::debian();
        machine.write("profile.yaml", SEED);
        fs::create_dir_all(machine.path("var")).unwrap();
        let before = machine.tree();
        let output = run(&machine, script);
        let code = if what == "no such root" { 1 } else { 2 };
        wants(what, &output, code, words);
        assert_eq!(differences(&before, &machine.tree()), [""; 0], "{what}");
    }
}

#[test]
fn what_is_right_already_needs_no_disk_that_can_be_written() {
    let machine = ordinary();
    let output = run(&machine, "mount --bind $ROOT $ROOT; mount -o remount,ro,bind $ROOT; exec $apply");
    wants("read-only", &output, 0, &["nothing to change"]);
}

#[test]
fn a_limit_that_is_too_small_is_an_error_and_no_death() {
    for size in [0, 100, 1_000, 3_000] {
        let machine = ordinary();
        let before = machine.tree();
        let script = format!("sed -i s/5000/5001/ $PROFILE; exec prlimit --fsize={size}:{size} $apply");
        let output = run(&machine, &script);
        wants(&format!("files of {size} bytes"), &output, 1, &["error: ", "File too large"]);
        machine.write("profile.yaml", SEED);
        assert_eq!(differences(&before, &machine.tree()), [""; 0], "{size}");
        machine.apply(&SEED.replace("5000", "5001"));
    }
}

/// An allocation that fails ends a process: what it had begun is the next run's to finish.
#[test]
fn too_little_memory_leaves_nothing_that_the_next_run_does_not_finish() {
    let wanted = ordinary().tree();
    let mut ended = Vec::new();
    for mebibytes in [8, 12, 16, 20, 24, 32, 48, 96] {
        let machine = Machine::debian();
        let output = run(&machine, &format!("exec prlimit --as={} $apply", mebibytes << 20));
        ended.push(format!("{mebibytes}MiB: {:?}{:?}", output.status.code(), output.status.signal()));
        machine.apply(SEED);
        assert_eq!(differences(&wanted, &machine.tree()), [""; 0], "{mebibytes} MiB: {}", text(&output));
    }
    println!("address space, exit code, signal: {}", ended.join(", "));
}

#[test]
fn an_output_that_takes_nothing_is_an_error_for_those_that_only_print() {
    let machine = ordinary();
    for command in [
        "check --root $ROOT --profile $PROFILE --output json",
        "plan --root $ROOT --profile $PROFILE",
        "plan --root $ROOT --profile $PROFILE --output json",
        "config --root $ROOT --profile $PROFILE",
        "config --root $ROOT --profile $PROFILE --output json",
        "explain --root $ROOT ghcr.io",
        "explain --root $ROOT ghcr.io --output json",
        "migrate --root $ROOT",
        "schema",
    ] {
        let plain = run(&machine, &format!("exec $LARDER {command}"));
        let full = run(&machine, &format!("exec $LARDER {command} > /dev/full"));
        wants(command, &full, 1, &["error: write to standard output: No space left on device"]);
        let gone = run(&machine, &format!("$LARDER {command} 2>&1 >&3 3>&- | (sleep 0; cat)"));
        assert!(gone.status.signal().is_none(), "{command}: {}", text(&gone));
        let broken = run(&machine, &format!("(sleep 0.3; exec $LARDER {command}; ) | exec true; wait"));
        assert!(!text(&broken).contains("panicked"), "{command}: {}", text(&broken));
        let closed = run(&machine, &format!("exec $LARDER {command} >&-"));
        assert_eq!(closed.status.code(), plain.status.code(), "{command}: {}", text(&closed));
    }
}

#[test]
fn an_output_that_takes_nothing_says_nothing_about_what_was_done() {
    for (what, to) in [("full", "> /dev/full"), ("gone", "| true")] {
        let machine = Machine::debian();
        let script = format!(
            "(set +e; $apply; echo $? > $ROOT/code) {to}; sleep 0.2; while [ ! -s $ROOT/code ]; do sleep 0.1; done"
        );
        let output = run(&machine, &script);
        wants(what, &output, 0, &[]);
        assert_eq!(machine.read("code").trim(), "0", "{what}: {}", text(&output));
        if what == "full" {
            assert!(text(&output).contains("warning: write to standard output"), "{}", text(&output));
        }
        wants(what, &run(&machine, "exec $plan"), 0, &[]);
    }
}

#[test]
fn folders_that_the_operator_keeps_elsewhere_stay_there() {
    let machine = Machine::debian();
    for (link, target) in [("etc/larder", "/srv/settings"), ("var/lib/larder", "../../srv/data")] {
        fs::create_dir_all(machine.path("srv").join(target.rsplit('/').next().unwrap())).unwrap();
        fs::create_dir_all(machine.path(link).parent().unwrap()).unwrap();
        symlink(target, machine.path(link)).unwrap();
    }
    machine.apply(SEED);
    assert!(machine.path("srv/settings/registry/ghcr.io.yml").is_file());
    assert!(machine.path("srv/data/state/manifest.json").is_file());
    assert!(machine.path("etc/larder").is_symlink() && machine.path("var/lib/larder").is_symlink());
    assert_eq!(machine.apply(SEED), "nothing to change\n");
}

#[test]
fn folders_whose_links_lead_out_of_the_image_do_not_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    for link in ["etc/larder", "var/lib/larder"] {
        let machine = Machine::debian();
        fs::create_dir_all(machine.path(link).parent().unwrap()).unwrap();
        symlink(format!("/../../../..{}", outside.path().display()), machine.path(link)).unwrap();
        let output = machine.larder(&["apply"], SEED);
        assert_ne!(output.status.code(), Some(0), "{}", text(&output));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{link}");
    }
}

#[test]
fn a_profile_that_is_no_file_is_refused_at_once() {
    for (what, script, words) in [
        ("a pipe", "mkfifo $ROOT/etc/larder/profile.yaml", "not a regular file"),
        ("a device", "mknod $ROOT/etc/larder/profile.yaml c 1 5", "not a regular file"),
        ("a folder", "mkdir $ROOT/etc/larder/profile.yaml", "directory"),
        ("a link to nothing", "ln -s /nowhere $ROOT/etc/larder/profile.yaml", "there is none"),
        ("a link to itself", "ln -s profile.yaml $ROOT/etc/larder/profile.yaml", "symbolic links"),
        ("nothing in it", ": > $ROOT/etc/larder/profile.yaml", "error: "),
        ("ten megabytes", "head -c 10000000 /dev/zero > $ROOT/etc/larder/profile.yaml", "more than 1024 KiB"),
        (
            "a pipe among the drop-ins",
            "mkdir $ROOT/etc/larder/profile.d; cp $PROFILE $ROOT/etc/larder/profile.yaml; mkfifo \
          $ROOT/etc/larder/profile.d/a.yaml",
            "not a regular file",
        ),
        (
            "one for others' eyes",
            "cp $PROFILE $ROOT/etc/larder/profile.yaml; chmod 0 $ROOT/etc/larder/profile.yaml; chmod \
          755 $ROOT; as='setpriv --reuid=65534 --clear-groups'",
            "Permission denied",
        ),
    ] {
        let machine = Machine::debian();
        fs::create_dir_all(machine.path("etc/larder")).unwrap();
        let verb = if what == "one for others' eyes" { "check" } else { "apply" };
        let output = run(&machine, &format!("{script}; exec timeout 20 $as $LARDER {verb} --root $ROOT"));
        wants(what, &output, 2, &[words]);
        assert!(!machine.has("var/lib/larder"), "{what}");
    }
}

#[test]
fn a_clock_that_is_wrong_is_not_asked_for_much() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if !std::path::Path::new(library).exists() {
        println!("SKIPPED: no {library}");
        return;
    }
    let wanted = ordinary().tree();
    for clock in ["1970-01-01 00:00:00", "2100-01-01 00:00:00", "9999-12-31 23:59:59"] {
        let machine = Machine::debian();
        let at = format!("env LD_PRELOAD={library} FAKETIME='@{clock}'");
        let script = format!(
            "{at} $apply; echo mine > $ROOT/etc/larder/registry/ghcr.io.yml; ! {at} $plan >/dev/null; {at} $apply; {at} $plan"
        );
        let output = run(&machine, &script);
        wants(clock, &output, 0, &["is kept as", ".edited-by-hand."]);
        let mut tree = machine.tree();
        tree.retain(|path, _| !path.contains("state/kept"));
        assert_eq!(differences(&wanted, &tree), [""; 0], "{clock}");
    }
}

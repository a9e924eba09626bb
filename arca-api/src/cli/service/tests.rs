// SPDX-License-Identifier: Apache-2.0
use arca_daemon::config::{Input, load};
use plist::Value;

use super::*;

fn plan(home: &str) -> Plan {
    let environment = [("ARCA_HOME".to_owned(), home.to_owned())].into();
    let config = load(&Input {
        environment,
        flags: Vec::new(),
        root: true,
        user_home: "/root".into(),
        program: "/usr/bin/arca".into(),
    });
    Plan {
        programs: "/usr/bin".into(),
        home: Some(home.into()),
        user_home: "/root".into(),
        config: config.expect("a valid configuration"),
        group: true,
    }
}

fn file(manager: &dyn Manager, plan: &Plan, name: &str) -> String {
    let files = manager.files(plan).expect("files");
    files.into_iter().find(|file| file.name == name).expect("the file").text
}

#[test]
fn each_daemon_has_a_socket_unit_whose_name_it_asks_for() {
    let plan = plan("/srv/arca");
    for service in arca_daemon::services::SERVICES {
        let socket = file(&systemd::Systemd, &plan, &format!("{}.socket", service.program));
        assert!(socket.contains(&format!("FileDescriptorName={}\n", service.socket)), "{socket}");
        let path = (service.path)(&plan.config.paths);
        assert!(socket.contains(&format!("ListenStream={}\n", path.display())), "{socket}");
    }
    let docker = file(&systemd::Systemd, &plan, "arca-api.socket");
    assert!(docker.contains("SocketMode=0660\nSocketGroup=arca\n"), "{docker}");
}

#[test]
fn units_let_machines_outlive_their_daemon_and_bind_only_what_starts_none() {
    let plan = plan("/srv/arca");
    for service in arca_daemon::services::SERVICES {
        let unit = file(&systemd::Systemd, &plan, &format!("{}.service", service.program));
        for line in
            ["KillMode=process\n", "Delegate=yes\n", "Type=notify\n", "WatchdogSec=30\n", "Restart=on-failure\n"]
        {
            assert!(unit.contains(line), "{line} in {unit}");
        }
        // Seccomp filters and no_new_privs would be inherited by every container.
        let inherited = ["NoNewPrivileges", "SystemCallArchitectures", "ProtectSystem", "ProtectHome", "Private"];
        let bound = inherited.iter().any(|word| unit.contains(word));
        assert_eq!(bound, !service.starts_machines, "{unit}");
    }
}

#[test]
fn a_home_with_odd_characters_stays_one_word() {
    let plan = plan("/srv/100% \"ours\" $HOME");
    let unit = file(&systemd::Systemd, &plan, "arca-netd.service");
    assert!(unit.contains("Environment=\"ARCA_HOME=/srv/100%% \\\"ours\\\" $$HOME\"\n"), "{unit}");
}

#[test]
fn property_lists_name_the_socket_and_are_neither_background_jobs_nor_ended_as_a_group() {
    let plan = plan("/srv/arca & <co>");
    for service in arca_daemon::services::SERVICES {
        let name = format!("dev.arca.{}.plist", service.program.trim_start_matches("arca-"));
        let text = file(&launchd::Launchd, &plan, &name);
        let parsed = Value::from_reader_xml(text.as_bytes()).expect("a property list");
        let job = parsed.as_dictionary().expect("a dictionary");
        let socket = job["Sockets"].as_dictionary().and_then(|sockets| sockets.get(service.socket));
        let socket = socket.and_then(Value::as_dictionary).expect("its socket");
        let path = (service.path)(&plan.config.paths);
        assert_eq!(socket["SockPathName"].as_string(), path.to_str());
        assert_eq!(socket["SockPathMode"].as_unsigned_integer(), Some(u64::from(service.mode)));
        assert_eq!(job["AbandonProcessGroup"].as_boolean(), Some(true));
        assert!(!job.contains_key("ProcessType"));
        let restarts = job["KeepAlive"].as_dictionary().and_then(|keep| keep.get("SuccessfulExit"));
        assert_eq!(restarts.and_then(Value::as_boolean), Some(false));
        let home = job["EnvironmentVariables"].as_dictionary().and_then(|environment| environment.get("ARCA_HOME"));
        assert_eq!(home.and_then(Value::as_string), Some("/srv/arca & <co>"));
    }
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let files = [("one", "1"), ("no/such/folder", "2")];
    let files = files.map(|(name, text)| ServiceFile { name: name.into(), text: text.into() });
    assert!(write(directory.path(), &files).is_err());
    assert!(!directory.path().join("one").exists());
    write(directory.path(), &files[..1]).expect("write");
    assert_eq!(std::fs::read_to_string(directory.path().join("one")).expect("read"), "1");
}

#[test]
fn a_status_line_says_what_systemd_says() {
    let said =
        "LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=7\nNRestarts=2\nActiveEnterTimestamp=now\n";
    assert_eq!(
        systemd::status_line("x.service", said),
        "x.service            active (running), pid 7, since now, restarted 2 times"
    );
    assert!(systemd::status_line("x.service", "LoadState=not-found\n").contains("not installed"));
}

// SPDX-License-Identifier: Apache-2.0
//! The keeper of a network as a job of launchd: it outlives arca-netd, and only a job may have a mach service, over which a
//! network is handed out. Pure; who runs `launchctl` is the macOS switch.

use std::path::Path;

/// What launchd is told.
#[derive(Clone, Debug)]
pub(super) struct Job<'a> {
    /// Unique, also the name of its mach service.
    pub(super) label: &'a str,
    /// Program and arguments.
    pub(super) command: &'a [String],
    /// Where standard error goes.
    pub(super) log: &'a Path,
}

/// Label of a segment's keeper.
pub(super) fn label(segment: &str) -> String {
    format!("dev.arca.vmnet.{segment}")
}

/// Where the job lives (launchctl(1)): the system's jobs are root's, a person's live as long as the login that `managername`
/// tells, or in the background session.
pub(super) fn domain(uid: u32, managername: &str) -> String {
    match (uid, managername.trim()) {
        (0, _) => "system".to_owned(),
        (uid, "Aqua") => format!("gui/{uid}"),
        (uid, _) => format!("user/{uid}"),
    }
}

/// The property list (launchd.plist(5)). Neither KeepAlive nor a fork: a network that died is made again by arca-netd, which
/// knows whether it is still wanted.
pub(super) fn property_list(job: &Job<'_>) -> String {
    let arguments: String =
        job.command.iter().map(|word| format!("\t\t<string>{}</string>\n", escaped(word))).collect();
    let (label, log) = (escaped(job.label), escaped(&job.log.to_string_lossy()));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n<dict>\n\
         \t<key>Label</key>\n\t<string>{label}</string>\n\
         \t<key>ProgramArguments</key>\n\t<array>\n{arguments}\t</array>\n\
         \t<key>MachServices</key>\n\t<dict>\n\t\t<key>{label}</key>\n\t\t<true/>\n\t</dict>\n\
         \t<key>LimitLoadToSessionType</key>\n\t<array>\n\t\t<string>Aqua</string>\n\t\t<string>Background</string>\n\
         \t\t<string>System</string>\n\t</array>\n\
         \t<key>RunAtLoad</key>\n\t<true/>\n\
         \t<key>StandardErrorPath</key>\n\t<string>{log}</string>\n\
         </dict>\n</plist>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_confined_to_its_domain_and_says_what_it_runs() {
        let command = ["/opt/arca-netd".to_owned(), "vmnet-keeper".to_owned(), "--socket=/a & b/<n>".to_owned()];
        let label = label("b12345678abcdef");
        let text = property_list(&Job { label: &label, command: &command, log: Path::new("/l") });
        for part in [
            "<key>Label</key>\n\t<string>dev.arca.vmnet.b12345678abcdef</string>",
            "<key>dev.arca.vmnet.b12345678abcdef</key>\n\t\t<true/>",
            "<string>--socket=/a &amp; b/&lt;n&gt;</string>",
            "<key>RunAtLoad</key>\n\t<true/>",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(text.matches('<').count(), text.matches('>').count());
        assert!(!text.contains("KeepAlive"));
        assert_eq!(domain(0, "System\n"), "system");
        assert_eq!(domain(501, "Aqua\n"), "gui/501");
        assert_eq!(domain(501, "Background"), "user/501");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! `docker top`: what the host's ps(1) says of the processes in a container's process namespace.

use std::{collections::HashSet, fs, process::Command};

use serde_json::{Value, json};

use crate::http::{ApiError, ApiResult};

/// Titles and processes, as the API shows them. `pid` is the container's first process; blocking.
///
/// # Errors
/// 501 where the container's processes are not the host's (a virtual machine), 500 with ps's own text.
pub fn top(pid: u32, arguments: &str) -> ApiResult<Value> {
    let members = members(pid).ok_or_else(|| ApiError::absent("container top of a virtual machine"))?;
    let arguments = if arguments.is_empty() { "-ef" } else { arguments };
    let output = Command::new("ps")
        .args(arguments.split_whitespace())
        .output()
        .map_err(|error| ApiError::internal(format!("ps: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(ApiError::internal(format!("ps: {}", text.lines().next().unwrap_or("").trim())));
    }
    parse(&String::from_utf8_lossy(&output.stdout), &members)
}

/// Host process ids in the process namespace of `pid`.
fn members(pid: u32) -> Option<HashSet<u32>> {
    let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let wanted = space(pid).ok()?;
    let all = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Some(all.filter(|&pid| space(pid).is_ok_and(|space| space == wanted)).collect())
}

fn parse(text: &str, members: &HashSet<u32>) -> ApiResult<Value> {
    let mut lines = text.lines();
    let titles: Vec<&str> = lines.next().unwrap_or("").split_whitespace().collect();
    let Some(column) = titles.iter().position(|title| *title == "PID") else {
        return Err(ApiError::internal("Couldn't find PID field in ps output"));
    };
    let processes: Vec<Vec<String>> = lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let pid = words.get(column)?.parse().ok()?;
            // What is more than the titles belongs to the last of them: a command line.
            let (head, tail) = words.split_at(words.len().min(titles.len() - 1));
            let cells = head.iter().map(|&word| word.to_owned()).chain([tail.join(" ")]);
            members.contains(&pid).then(|| cells.collect())
        })
        .collect();
    Ok(json!({"Titles": titles, "Processes": processes}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_container_are_kept_whole() {
        let text = "UID  PID CMD\nroot 1 init\nroot 7 sleep  100\n";
        let answer = parse(text, &HashSet::from([7])).expect("parse");
        assert_eq!(answer, json!({"Titles": ["UID", "PID", "CMD"], "Processes": [["root", "7", "sleep 100"]]}));
        assert_eq!(
            parse("COMMAND\n", &HashSet::new()).expect_err("no PID").message,
            "Couldn't find PID field in ps output"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_in_its_own_namespace() {
        let own = std::process::id();
        assert!(members(own).expect("members").contains(&own));
        assert!(members(u32::MAX).is_none());
    }
}

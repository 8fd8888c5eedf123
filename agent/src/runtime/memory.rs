//! How much memory can be had: the least of what the machine has left and what a control group still allows.

use std::path::{Path, PathBuf};

/// Taken when the system says nothing.
const UNKNOWN: u64 = 4 << 30;

/// Memory that can be had without pushing out what others use, in bytes.
pub(super) fn available() -> u64 {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| of_machine(&text));
    let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let groups = groups(&own).into_iter().filter_map(|dir| {
        let file = |name: &str| read(&dir.join(name));
        of_group(&file("memory.max")?, &file("memory.current")?, &file("memory.stat").unwrap_or_default())
    });
    groups.chain(machine).min().unwrap_or(UNKNOWN)
}

/// `MemAvailable` of `/proc/meminfo`.
fn of_machine(meminfo: &str) -> Option<u64> {
    let kib = field(meminfo, "MemAvailable:")?.strip_suffix("kB")?.trim();
    Some(kib.parse::<u64>().ok()? * 1024)
}

/// The control group of this process (version 2) and those around it. Within a container the innermost is the root of
/// what is mounted.
fn groups(own: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let path = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
    let innermost = if path.is_empty() { root.to_path_buf() } else { root.join(path) };
    innermost.ancestors().filter(|p| p.starts_with(root)).map(Path::to_path_buf).collect()
}

/// What a group may still take: its limit less its use; pages of files that were not touched lately can be had back.
fn of_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let (max, current): (u64, u64) = (max.trim().parse().ok()?, current.trim().parse().ok()?);
    let files = field(stat, "inactive_file ").and_then(|n| n.parse().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(files)))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_allows_what_is_left_of_its_limit() {
        let stat = "anon 100\ninactive_file 300\nactive_file 50\n";
        assert_eq!(of_group("1000\n", "600\n", stat), Some(700));
        assert_eq!(of_group("1000\n", "1200\n", ""), Some(0));
        assert_eq!(of_group("max\n", "600\n", stat), None, "no limit is no answer");
    }

    #[test]
    fn the_machine_says_what_is_available() {
        assert_eq!(of_machine("MemTotal: 100 kB\nMemAvailable:    64 kB\n"), Some(65_536));
        assert_eq!(of_machine("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn limits_of_all_groups_around_count() {
        let of = |own| groups(own).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(of("0::/\n"), ["/sys/fs/cgroup"]);
        assert_eq!(of("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
        assert_eq!(of("3:cpu:/x\n"), ["/sys/fs/cgroup"], "version 1 says nothing of memory here");
    }
}

//! Users with pinned numbers: written into a tree before packages that would create them with the
//! next free one. Home, shell and group are those that the distribution's own scripts give them.

use crate::recipe::Family;
use std::collections::BTreeMap;

/// The four files of accounts, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
    pub shadow: String,
    pub gshadow: String,
}

enum Kind {
    /// Home, shell.
    User(&'static str, &'static str),
    /// The same, with a primary group of another name.
    UserIn(&'static str, &'static str, &'static str),
    Group,
    /// Its own package creates it with this very number.
    Reserved,
}

const NOLOGIN: &str = "/usr/sbin/nologin";

fn kind(name: &str, family: Family) -> Kind {
    match family {
        Family::Apt => debian(name),
        Family::Yum => el7(name),
    }
}

/// What CentOS 7's and RDO's packages agree on (their %pre scriptlets).
fn el7(name: &str) -> Kind {
    const NOLOGIN: &str = "/sbin/nologin";
    match name {
        "mysql" => Kind::User("/var/lib/mysql", NOLOGIN),
        "rabbitmq" => Kind::User("/var/lib/rabbitmq", NOLOGIN),
        "memcached" => Kind::User("/run/memcached", NOLOGIN),
        "chrony" => Kind::User("/var/lib/chrony", NOLOGIN),
        "epmd" => Kind::User("/dev/null", NOLOGIN),
        "neutron" => Kind::User("/var/lib/neutron", NOLOGIN),
        // RDO reserves a number for it, but a storage node has its files and not its package.
        "glance" => Kind::User("/var/lib/glance", NOLOGIN),
        // hacluster's group is haclient, of the same number; nova and qemu get groups beside their own.
        "haproxy" | "hacluster" | "sshd" | "dbus" | "keystone" | "nova" | "qemu" => Kind::Reserved,
        _ => Kind::User("/", NOLOGIN),
    }
}

/// What Debian's packages agree on (their postinst scripts, Debian 12).
fn debian(name: &str) -> Kind {
    match name {
        "mysql" | "memcache" => Kind::User("/nonexistent", "/bin/false"),
        "rabbitmq" => Kind::User("/var/lib/rabbitmq", NOLOGIN),
        "haproxy" => Kind::User("/var/lib/haproxy", NOLOGIN),
        "hacluster" => Kind::UserIn("haclient", "/var/lib/pacemaker", NOLOGIN),
        "haclient" => Kind::Group,
        "_chrony" => Kind::User("/var/lib/chrony", NOLOGIN),
        "sshd" => Kind::UserIn("nogroup", "/run/sshd", NOLOGIN),
        "keystone" => Kind::User("/var/lib/keystone", "/bin/sh"),
        "placement" => Kind::User("/var/lib/placement", "/bin/false"),
        "neutron" => Kind::User("/var/lib/neutron", "/bin/false"),
        // Debian reserves a number for it, but novnc's scripts, which may come first, do not know.
        "nova" => Kind::User("/var/lib/nova", "/bin/sh"),
        "libvirt-qemu" | "glance" => Kind::Reserved,
        _ => Kind::User("/nonexistent", NOLOGIN),
    }
}

/// Adds the users and groups that are not there yet. A name that is there with another number is an error.
pub fn add(accounts: &mut Accounts, users: &BTreeMap<String, u32>, epoch: u64, family: Family) -> Result<(), String> {
    let day = epoch / 86400;
    // Where there is no shadow yet the password itself stands in passwd, and `x` would become one.
    let mark = |shadow: &str| if shadow.is_empty() { "*" } else { "x" };
    let (user_mark, group_mark) = (mark(&accounts.shadow), mark(&accounts.gshadow));
    for (name, id) in users {
        let kind = kind(name, family);
        if matches!(kind, Kind::Reserved) {
            continue;
        }
        let own_group = !matches!(kind, Kind::UserIn(..));
        if own_group && !has(&accounts.group, name, *id)? {
            accounts.group += &format!("{name}:{group_mark}:{id}:\n");
            accounts.gshadow += &format!("{name}:!::\n");
        }
    }
    for (name, id) in users {
        let (group, home, shell) = match kind(name, family) {
            Kind::User(home, shell) => (name.as_str(), home, shell),
            Kind::UserIn(group, home, shell) => (group, home, shell),
            Kind::Group | Kind::Reserved => continue,
        };
        if has(&accounts.passwd, name, *id)? {
            continue;
        }
        let gid = number(&accounts.group, group).ok_or_else(|| format!("user {name}: there is no group {group}"))?;
        accounts.passwd += &format!("{name}:{user_mark}:{id}:{gid}::{home}:{shell}\n");
        accounts.shadow += &format!("{name}:!:{day}::::::\n");
    }
    Ok(())
}

/// Which of the pinned users a tree has with another number; each a sentence.
pub fn broken_pins(passwd: &str, group: &str, users: &BTreeMap<String, u32>) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, id) in users {
        for (what, file) in [("user", passwd), ("group", group)] {
            match number(file, name) {
                Some(found) if found != *id => broken.push(format!("{what} {name} is {found}, pinned is {id}")),
                _ => {}
            }
        }
    }
    broken
}

/// The number in the third field of the line that begins with `name`.
pub fn number(file: &str, name: &str) -> Option<u32> {
    let line = file.lines().find(|l| l.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

fn has(file: &str, name: &str, id: u32) -> Result<bool, String> {
    match number(file, name) {
        None => match file.lines().find(|l| l.split(':').nth(2) == Some(&id.to_string())) {
            Some(other) => {
                Err(format!("{name} is pinned to {id}, which {:?} has", other.split(':').next().unwrap_or("")))
            }
            None => Ok(false),
        },
        Some(found) if found == id => Ok(true),
        Some(found) => Err(format!("{name} is pinned to {id} and exists as {found}")),
    }
}

/// `shadow` without the day of the build: the last change of every password is the epoch's day.
pub fn settled_shadow(shadow: &str, epoch: u64) -> String {
    let mut text = String::new();
    for line in shadow.lines() {
        let mut fields: Vec<String> = line.split(':').map(String::from).collect();
        if let Some(changed) = fields.get_mut(2).filter(|c| !c.is_empty()) {
            *changed = (epoch / 86400).to_string();
        }
        text += &fields.join(":");
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\n".into(),
            group: "root:x:0:\nnogroup:x:65534:\n".into(),
            shadow: "root:*:1::::::\n".into(),
            gshadow: "root:*::\n".into(),
        }
    }

    fn pins(pairs: &[(&str, u32)]) -> BTreeMap<String, u32> {
        pairs.iter().map(|(n, i)| (n.to_string(), *i)).collect()
    }

    #[test]
    fn pinned_users_come_with_their_group_and_only_once() {
        let mut accounts = debian();
        let users =
            pins(&[("hacluster", 405), ("haclient", 406), ("mysql", 401), ("sshd", 408), ("libvirt-qemu", 64055)]);
        add(&mut accounts, &users, 86400 * 20000, Family::Apt).unwrap();
        assert!(accounts.passwd.contains("hacluster:x:405:406::/var/lib/pacemaker:/usr/sbin/nologin\n"));
        assert!(accounts.passwd.contains("sshd:x:408:65534::/run/sshd:/usr/sbin/nologin\n"));
        assert!(accounts.group.contains("mysql:x:401:\n") && accounts.shadow.contains("mysql:!:20000::::::\n"));
        assert!(!accounts.passwd.contains("haclient:") && !accounts.passwd.contains("libvirt"));
        let once = accounts.clone();
        add(&mut accounts, &users, 0, Family::Apt).unwrap();
        assert_eq!(accounts, once);
    }

    #[test]
    fn each_family_has_its_own_homes_and_reserved_numbers() {
        let (mut el7, users) = (debian(), pins(&[("mysql", 27), ("hacluster", 189)]));
        add(&mut el7, &users, 0, Family::Yum).unwrap();
        assert!(el7.passwd.contains("mysql:x:27:27::/var/lib/mysql:/sbin/nologin\n"), "{}", el7.passwd);
        assert!(!el7.passwd.contains("hacluster") && !el7.group.contains("hacluster"));
    }

    #[test]
    fn numbers_that_are_taken_are_errors() {
        let add = |users: &[(&str, u32)]| add(&mut debian(), &pins(users), 0, Family::Apt).unwrap_err();
        assert!(add(&[("mysql", 0)]).contains("which \"root\" has"));
        assert!(add(&[("root", 7)]).contains("exists as 0"));
        let broken = broken_pins("mysql:x:107:1:::\n", "mysql:x:401:\n", &pins(&[("mysql", 401)]));
        assert_eq!(broken, ["user mysql is 107, pinned is 401"]);
    }

    #[test]
    fn no_day_of_the_build_stays_in_shadow() {
        assert_eq!(settled_shadow("a:*:20779:0:99999:7:::\nb:!::::::\n", 86400 * 3), "a:*:3:0:99999:7:::\nb:!::::::\n");
    }
}

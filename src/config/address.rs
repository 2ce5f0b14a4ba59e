//! The addresses to listen on: their grammar, and which of them cannot be bound.
//!
//! Nothing is bound here. `--check-config` runs beside a server that has bound the same addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::Mistakes;
use crate::invalid::InvalidValue;
use crate::server::ListenAddress;

/// Returns whether other machines can reach an address. A name counts as reachable.
pub(super) fn reaches_beyond_here(listen: &str) -> bool {
    let Ok(ListenAddress::Tcp(address)) = address(listen) else { return false };
    let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    host != "localhost" && !host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

pub(super) fn address(text: &str) -> Result<ListenAddress, InvalidValue> {
    match text.strip_prefix("unix:") {
        Some(path) if !Path::new(path).is_absolute() => {
            Err(format!("{text:?} needs an absolute path, such as unix:/run/tenantgate/authz.sock").into())
        }
        Some(path) if path.len() > LONGEST_PATH => Err(format!(
            "{text:?} is too long: the path of a Unix socket has at most {LONGEST_PATH} bytes, this one has {}",
            path.len()
        ).into()),
        Some(path) => Ok(ListenAddress::Unix(path.into())),
        None => tcp_address(text).map(ListenAddress::Tcp),
    }
}

/// `sockaddr_un.sun_path` has 108 bytes, and the last one is NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// Checks HOST:PORT. A host is an address, or a name that is resolved when it is bound.
pub(super) fn tcp_address(text: &str) -> Result<String, InvalidValue> {
    let invalid = |hint: &str| Err(format!("invalid address {text:?}: {hint}").into());
    if text.contains("://") {
        return invalid("expected HOST:PORT without a scheme, such as 127.0.0.1:50051");
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
        return invalid("expected HOST:PORT, such as 127.0.0.1:50051");
    };
    if port.parse::<u16>().is_err() || port.starts_with('+') {
        return invalid("expected a port from 0 to 65535");
    }
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    match in_brackets {
        Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => Ok(text.to_owned()),
        Some(_) => invalid("expected an IPv6 address in the brackets"),
        None if host == "*" => invalid("write 0.0.0.0 or [::] for all addresses of this machine"),
        None if host.contains(':') => invalid("write an IPv6 address in brackets, such as [::1]:50051"),
        None if host.bytes().all(name) => Ok(text.to_owned()),
        None => invalid("expected a host name or an IP address"),
    }
}

/// Returns the address that both would bind, if they conflict, however they are spelled.
pub(super) fn conflict(one: &ListenAddress, other: &str) -> Option<String> {
    let ListenAddress::Tcp(one) = one else { return None };
    let ((host, port), (other_host, other_port)) = (one.rsplit_once(':')?, other.rsplit_once(':')?);
    let (port, other_port): (u16, u16) = (port.parse().ok()?, other_port.parse().ok()?);
    let same = port == other_port && port != 0 && Host::of(host).overlaps(&Host::of(other_host));
    same.then(|| other.to_owned())
}

/// The addresses that a host stands for.
#[derive(Eq, PartialEq)]
enum Host {
    /// Every address, also of IPv4 (ipv6(7), `IPV6_V6ONLY`).
    Every,
    /// Every address of IPv4.
    EveryV4,
    One(IpAddr),
    Name(String),
}

impl Host {
    fn of(text: &str) -> Self {
        match text.trim_matches(['[', ']']).parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(IpAddr::V6(address)) if address.is_unspecified() => Self::Every,
            Ok(IpAddr::V4(address)) if address.is_unspecified() => Self::EveryV4,
            Ok(address) => Self::One(address),
            Err(_) if text.eq_ignore_ascii_case("localhost") => Self::One(Ipv4Addr::LOCALHOST.into()),
            Err(_) => Self::Name(text.trim_end_matches('.').to_ascii_lowercase()),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let covers = |wide: &Self, host: &Self| match wide {
            Self::Every => true,
            Self::EveryV4 => !matches!(host, Self::One(IpAddr::V6(_))),
            Self::One(_) | Self::Name(_) => false,
        };
        self == other || covers(self, other) || covers(other, self)
    }
}

/// Returns whether an address is the Unix socket at this path, however its directory is spelled.
pub(super) fn same_socket(one: &ListenAddress, path: &Path) -> bool {
    let ListenAddress::Unix(one) = one else { return false };
    // Resolves links and `..` of the directory. The socket itself may not exist.
    let file = |path: &Path| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    one == path || file(one).is_some_and(|one| Some(one) == file(path))
}

/// Records the sockets that could not be created. `--check-config` alone does: binding fails with an exit code of its own.
pub(super) fn check_sockets<'a>(
    option: &'static str,
    paths: impl IntoIterator<Item = &'a PathBuf>,
    mistakes: &mut Mistakes,
) {
    for path in paths {
        if let Some(why) = unusable(path) {
            mistakes.add(option, format!("unix:{}: {why}", path.display()));
        }
    }
}

fn unusable(path: &Path) -> Option<String> {
    let folder = path.parent()?;
    match std::fs::metadata(folder) {
        Ok(meta) if !meta.is_dir() => return Some(format!("{} is not a directory", folder.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some(format!("the directory {} does not exist: create it", folder.display()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Some(format!("a part of {} is not a directory", folder.display()));
        }
        // Another user may be allowed to read it.
        Ok(_) | Err(_) => {}
    }
    let taken = std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_socket());
    taken.then(|| "something that is not a socket is there: remove it, or choose another path".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_or_an_absolute_path() {
        for good in ["127.0.0.1:0", "[::1]:50051", "localhost:1", "0.0.0.0:65535", "unix:/run/a.sock"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "50051",
            ":50051",
            "127.0.0.1",
            "127.0.0.1:65536",
            "127.0.0.1:+1",
            "unix:a.sock",
            "unix:",
            "*:1",
            "http://127.0.0.1:1",
            "http://127.0.0.1",
            "::1:50051",
            "[localhost]:1",
            "a b:1",
            "a/b:1",
            "[::1]",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
        let path = |len: usize| format!("unix:/{}", "x".repeat(len - 1));
        assert!(address(&path(107)).is_ok() && address(&path(108)).is_err());
    }

    #[test]
    fn conflicting_addresses_are_detected() {
        let conflict = |one: &str, other| conflict(&address(one).unwrap(), other).is_some();
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "[::]:1"),
            ("localhost:1", "127.0.0.1:1"),
            ("0.0.0.0:9001", "127.0.0.1:09001"),
            ("[::]:1", "[0:0::0]:1"),
            ("[::1]:1", "[0:0:0:0:0:0:0:1]:1"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
            ("Gate.internal:1", "gate.internal.:1"),
        ] {
            assert!(conflict(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("unix:/run/a.sock", "127.0.0.1:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("127.0.0.1:0", "0.0.0.0:00"),
        ] {
            assert!(!conflict(one, other), "{one} {other}");
        }
    }

    #[test]
    fn addresses_that_other_machines_can_reach_are_detected() {
        for here in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/run/a.sock"] {
            assert!(!reaches_beyond_here(here), "{here}");
        }
        for beyond in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "gate.internal:1"] {
            assert!(reaches_beyond_here(beyond), "{beyond}");
        }
    }

    #[test]
    fn a_socket_is_recognised_however_its_directory_is_spelled() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let socket = ListenAddress::Unix(real.join("a.sock"));
        for same in ["real/a.sock", "real/./a.sock", "real/../real/a.sock", "link/a.sock"] {
            assert!(same_socket(&socket, &folder.path().join(same)), "{same}");
        }
        for other in ["real/b.sock", "a.sock", "none/a.sock"] {
            assert!(!same_socket(&socket, &folder.path().join(other)), "{other}");
        }
        let nowhere = ListenAddress::Unix("/no/such/a.sock".into());
        assert!(same_socket(&nowhere, Path::new("/no/./such/a.sock")));
    }
}

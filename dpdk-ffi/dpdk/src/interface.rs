//! The kernel's interface behind a port, where there is one, as the kernel tells of it.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// A network interface of the kernel, by its number, in the network namespace of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    index: i32,
}

/// How an interface is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceState {
    /// Its name.
    pub name: String,
    /// Whether frames can pass: it is up, and so is what is at its other end.
    pub up: bool,
    /// Its largest IP packet in bytes.
    pub mtu: u32,
}

impl Interface {
    /// The interface of a number; none for 0, which DPDK gives to ports without one.
    pub(crate) fn of(index: u32) -> Option<Self> {
        i32::try_from(index).ok().filter(|index| *index > 0).map(|index| Self { index })
    }

    pub(crate) fn index(self) -> i32 {
        self.index
    }

    /// How it is now; none if there is no such interface any more.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn state(self) -> io::Result<Option<InterfaceState>> {
        match self.ask() {
            Ok(state) => Ok(Some(state)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(self) -> io::Result<InterfaceState> {
        // SAFETY: a call by value; the result is checked.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all bytes zero are a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = self.index;
        // The first question fills in the name, by which the others ask.
        let mut ask = |what| {
            // SAFETY: the request is writable, and what these questions take.
            match unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) } {
                0 => Ok(request),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let name = ask(libc::SIOCGIFNAME)?.ifr_name;
        let (flags, mtu) = (ask(libc::SIOCGIFFLAGS)?, ask(libc::SIOCGIFMTU)?);
        // SAFETY: the kernel has filled in the members that it was asked for.
        let (flags, mtu) = unsafe { (i32::from(flags.ifr_ifru.ifru_flags), mtu.ifr_ifru.ifru_mtu) };
        let letters = name.iter().map(|letter| letter.cast_unsigned()).take_while(|letter| *letter != 0);
        Ok(InterfaceState {
            name: String::from_utf8_lossy(&letters.collect::<Vec<_>>()).into_owned(),
            up: flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0,
            mtu: u32::try_from(mtu).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_there_and_one_of_a_number_never_given_is_not() {
        let loopback = Interface::of(1).expect("a number").state().expect("the kernel answers");
        assert_eq!(loopback.map(|state| state.name), Some("lo".to_owned()));
        assert_eq!(Interface::of(i32::MAX as u32).map(|none| none.state().ok()), Some(Some(None)));
        assert_eq!(Interface::of(0), None);
    }
}

//! What throng asks of the operating system besides moving bytes: listeners, processors, descriptors.

use crate::stats::Heap;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Connections that may wait in the kernel for each shard to accept them. With 512, a storm of reconnects overflows it and clients
/// wait one to three seconds to send their SYN again; `net.core.somaxconn` cuts it to 4,096 by default.
const BACKLOG: i32 = 65_535;

/// What the kernel calls this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Makes sure that nobody else listens on `address`: a second server of ours would otherwise share the port without a word, and each
/// would hold half of every room. (A listener that does not share finds the port taken even by those who do.)
///
/// # Errors
/// When the address cannot be had.
pub fn claim(address: SocketAddr) -> io::Result<()> {
    let socket = bindable(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// A socket that can be bound to `address`, also while connections of an earlier listener are in TIME_WAIT.
fn bindable(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

/// A listener on `address` that shares its port with others of this kind: the kernel spreads connections over them.
///
/// # Errors
/// When the address cannot be had.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bindable(address)?;
    socket.set_reuse_port(true)?;
    // Linux hands this on to accepted sockets, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    defer_accept(&socket, 1);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What whoever started this process has opened for it, with the names that it gave (sd_listen_fds(3)). Only the first time it is asked: a
/// descriptor has one owner.
///
/// # Errors
/// When the variables say something that is not so.
pub fn passed() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // What is for another process may have names all the same, which are then too many.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(Vec::new());
    }
    let named = sd_notify::listen_fds_with_names()?.map(|(descriptor, name)| {
        #[expect(unsafe_code, reason = "a number becomes a descriptor that is closed when it is dropped")]
        // SAFETY: the variables are for this process and the descriptor is open, as has just been checked; nothing else here knows it,
        // and this line is reached once.
        (name, unsafe { OwnedFd::from_raw_fd(descriptor) })
    });
    Ok(named.collect())
}

/// A listener that another process has opened, made like those of [`listen`] whatever it was used for before.
///
/// # Errors
/// When it is something else than a TCP socket that listens.
pub fn adopt(socket: OwnedFd) -> io::Result<TcpListener> {
    let is_tcp = |socket: &Socket| {
        let is_ip = matches!(socket.domain()?, Domain::IPV4 | Domain::IPV6);
        Ok::<bool, io::Error>(is_ip && socket.r#type()? == Type::STREAM && socket.is_listener()?)
    };
    let socket = Socket::from(socket);
    if !is_tcp(&socket).unwrap_or(false) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no TCP socket that listens"));
    }
    // What the process before this one may have asked for: no new connections, in its last call, or those of one processor. (-1 is none.)
    socket.detach_filter().ok();
    socket.set_cpu_affinity(usize::MAX).ok();
    socket.set_tcp_nodelay(true)?;
    defer_accept(&socket, 1);
    socket.set_nonblocking(true)?;
    // Once more, for the length of its queue.
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Asks the kernel to give `listener`, rather than others on its port, the connections whose packets `cpu` takes (`SO_INCOMING_CPU`;
/// listeners heed it since Linux 6.2). Those of other processors are spread as ever.
pub fn prefer_cpu(listener: &impl AsFd, cpu: usize) {
    if let Err(error) = SockRef::from(listener).set_cpu_affinity(cpu) {
        tracing::warn!(%error, cpu, "cannot steer connections to their processor");
    }
}

/// Has the kernel drop what would begin a new connection, and nothing else: a client sends its SYN again after a second (RFC 6298,
/// section 2), by when the listener may be gone and another one on the port takes it.
///
/// # Errors
/// When the kernel has no memory for a filter.
pub fn refuse_new(listener: &impl AsFd) -> io::Result<()> {
    let statement = |code: u32, value| SockFilter::new(code as u16, 0, 0, value);
    // The flags of TCP are its byte 13, ACK is 0x10 and SYN 0x02 (RFC 9293, section 3.1); a filter of a listener sees the packet from
    // TCP's header on. Zero bytes are let through, or all.
    let filter = [
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 13),
        statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0x12),
        SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, 0x02),
        statement(libc::BPF_RET | libc::BPF_K, 0),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&filter)
}

/// Asks the kernel to show a connection only when its request is there, so that accept, upgrade and answer take one turn: a quarter of
/// the cost of a handshake. A client that connects and says nothing is shown after about a second (`tcp(7)`), and until then
/// costs no descriptor. With 0 seconds it is shown as soon as it is made.
pub fn defer_accept(listener: &impl AsFd, seconds: libc::c_int) {
    let (value, length) = (&raw const seconds, size_of::<libc::c_int>() as libc::socklen_t);
    #[expect(unsafe_code, reason = "TCP_DEFER_ACCEPT has no safe wrapper")]
    // SAFETY: the descriptor is open while `listener` is borrowed, and the value is a c_int of the length given.
    let refused = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            value.cast(),
            length,
        )
    };
    if refused != 0 {
        // Everything works without.
        tracing::debug!(error = %io::Error::last_os_error(), seconds, "cannot say when connections are to be accepted");
    }
}

/// Listens under an abstract name for other processes that have sockets to give. Messages stay whole and in order, as `SOCK_SEQPACKET`
/// has it.
///
/// # Errors
/// When the name cannot be had.
pub fn listen_for_sockets(name: &str, backlog: i32) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// A connection to the process that listens under an abstract name.
///
/// # Errors
/// When there is none, when it is not of this user, and when its queue is full: that is not waited for.
pub fn call(name: &str) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    if is_ours(&socket)? { Ok(socket) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// The next connection of another process, or `None` when that was not of this user, or has gone, and is closed.
///
/// # Errors
/// As `accept(2)`; `WouldBlock` when there is none.
pub fn accept_caller(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(caller) => Ok(is_ours(&caller)?.then_some(caller)),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends one message, and a socket with it. The other side has the socket then as well as we.
///
/// # Errors
/// When the kernel does not take it at once: nothing was sent.
pub fn send_socket(caller: &OwnedFd, head: &[u8], bytes: &[u8], socket: BorrowedFd<'_>) -> io::Result<()> {
    let sockets = [socket];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&sockets)), "there is room for one");
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(caller, &[IoSlice::new(head), IoSlice::new(bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives one message: how many bytes of `buffer` it is, and the socket that came with it, which does not block. It comes without when
/// there was not exactly one descriptor, or the message was longer than the buffer.
///
/// # Errors
/// As `recvmsg(2)`; `WouldBlock` when there is none yet.
pub fn receive_socket(caller: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    // Of further descriptors the kernel says that they did not fit, and closes them.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(caller, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let mut sockets: Vec<OwnedFd> = sockets.flatten().collect();
    let is_whole = !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) && sockets.len() == 1;
    let socket = sockets.pop().filter(|_| is_whole);
    // What it is shows when it is used as a socket; that nobody waits for it is up to us.
    let socket = socket.filter(|socket| rustix::io::ioctl_fionbio(socket, true).is_ok());
    Ok((received.bytes, socket))
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// True when the other side of a connection is a process of the user that we are. The kernel tells who it was when it connected or began
/// to listen.
fn is_ours(socket: &OwnedFd) -> io::Result<bool> {
    Ok(sockopt::socket_peercred(socket)?.uid == geteuid())
}

/// The processors that this process may use, by number.
pub fn cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        // Not being told is no reason not to start: one shard, wherever it runs.
        Err(_) => vec![0],
    }
}

/// Keeps this thread on one processor.
///
/// # Errors
/// When the system does not allow it; the thread then runs anywhere.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets other threads go before this one where processors are short. Threads that it starts later do the same.
pub fn give_way() {
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "cannot lower the priority of the control thread");
    }
}

/// Tells the allocator to give large blocks back to the system when they are freed. Left alone, glibc raises its threshold for
/// that with every large block that is freed, up to 32 MiB, and what a crowd needed stays with the process when the crowd has
/// gone: 70 of 110 MB after a million rooms, against 7 MB with this.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "mallopt has no safe wrapper")]
    {
        const LARGE_BYTES: libc::c_int = 64 << 10;
        // SAFETY: mallopt(3) takes two integers and may be called at any time; it is called before other threads are started.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, 4 * LARGE_BYTES) };
    }
}

/// What the allocator holds, where it says so: glibc's does. Takes the lock of one arena after the other and walks what is free there,
/// so a shard that allocates meanwhile may wait, for some microseconds, or milliseconds where a crowd has just gone.
pub fn heap() -> Option<Heap> {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "mallinfo2 has no safe wrapper")]
        // SAFETY: mallinfo2(3) takes nothing, may be called at any time by any thread, and returns a struct of integers.
        let info = unsafe { libc::mallinfo2() };
        let (used, mapped) = (info.uordblks as u64, info.hblkhd as u64);
        Some(Heap { in_use_bytes: used + mapped, mapped_bytes: mapped, free_bytes: info.fordblks as u64 })
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Raises the limit on open files as far as this process may, and answers what it is then.
pub fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // No limit at all is what `None` means; the kernel's own (fs.nr_open) is a billion at the most.
    current.map_or(1 << 30, |current| usize::try_from(current).unwrap_or(usize::MAX).min(1 << 30))
}

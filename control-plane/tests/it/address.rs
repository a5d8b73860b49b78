//! Addresses of a test's own.

use tokio::net::TcpSocket;

/// A port that is the test's own for as long as the socket lives: bound and not listening, it lets a program listen there (which says
/// `SO_REUSEADDR`, as servers do), and nobody else is given the port, even while no program runs.
pub fn reserved() -> (u16, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

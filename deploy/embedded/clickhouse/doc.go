// Package clickhouse runs the real ClickHouse engine (libchdb) with its native
// TCP and HTTP listeners on loopback, without containers and without a server
// binary: none is published for package managers, but the library is.
//
// # Why a child process
//
// The library is clickhouse-local as a function. It installs signal handlers,
// ends the process by abort or _exit when it feels like it, and can run once
// per process. So this program runs itself again in the role of the engine:
// [ChildHook] must be the first statement of main and of TestMain. The build tag
// noembedded leaves the engine out, because loading a library makes even a
// CGO_ENABLED=0 binary depend on glibc; [Start] then returns an error.
//
// # How it is driven
//
// Since 26.6 clickhouse-local understands SYSTEM START LISTEN. The engine gets
// two query files, both pipes. The first starts the listeners and writes their
// ports to a file, which is how this package knows that it is ready. The second
// is never written to: the engine sits in read(2) on it, at no cost, until it is
// closed, and then ends cleanly.
//
// # Traps
//
//   - Not interactive, the engine aborts at the first bad connection, for
//     instance one wrong password on the native port (ClickHouse issue 115666,
//     mended upstream after this build). Therefore it is given a terminal of its
//     own on descriptor 0 and told that it is interactive.
//   - An interactive engine writes a history file and does chmod 0600 on it.
//     That file must never be /dev/null: root would take it from everyone else.
//   - The session inside the process is always the user default without a
//     password, from 127.0.0.1. That user must exist, so it may do nothing but
//     SYSTEM LISTEN; clients get a user of their own with a random password.
//     What is left to any local user is to stop the listeners.
//   - A failed start is told on the standard error stream only, and the call
//     just returns: "returned without being asked to" is the failure.
//   - A config.xml in the working directory, or below the home, is read when no
//     configuration file is named; both are avoided.
//   - Logger settings below <logger> turn the level to trace; <log-level> at the
//     top is what counts.
//   - Users cannot be made by SQL, there is no Keeper, async_insert is silently
//     synchronous, and the database default is not like that of a server: create
//     one of your own.
//   - Clients should be closed before Stop: an open connection delays it by 5 s.
package clickhouse

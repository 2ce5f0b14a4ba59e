//! What operators do to a whole cluster: a base backup with an archive, a recovery to an instant, an upgrade.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use sqlx::{Connection as _, PgConnection, Row as _};

use super::{Cluster, PATIENCE, ROLE, become_user, binaries, directory, eventually, initdb, owner, wait};

/// A base backup and the archive that goes with it.
pub(crate) struct Backup {
    dir: PathBuf,
    archive: PathBuf,
}

impl Cluster {
    /// Archives its WAL from now on, and takes a base backup.
    pub(crate) fn back_up(&self) -> Backup {
        let (user, group) = owner().expect("found before");
        let archive = self.dir.join("archive");
        std::fs::create_dir(&archive).expect("a directory");
        std::os::unix::fs::chown(&archive, user, group).expect("it goes to the owner of the cluster");
        self.admin(&format!("ALTER SYSTEM SET archive_command = 'cp %p {}/%f'", archive.display()));
        self.restart_with("-c archive_mode=on");
        let dir = directory(user, group);
        self.base_backup(&dir, &[]);
        Backup { dir, archive }
    }

    /// Waits until everything until now is in the archive.
    pub(crate) fn archives_everything(&self) {
        let of = |sql: &'static str| {
            wait(async {
                let mut session = PgConnection::connect(&self.url("postgres")).await.expect("postgres is up");
                let row = sqlx::query(sql).fetch_one(&mut session).await.expect(sql);
                row.get::<Option<String>, _>(0).unwrap_or_default()
            })
        };
        let last = of("SELECT pg_walfile_name(pg_switch_wal())");
        eventually("the WAL is archived", PATIENCE, || {
            let archived = of("SELECT last_archived_wal FROM pg_stat_archiver");
            if archived >= last { Ok(()) } else { Err((archived, last.clone())) }
        });
    }

    /// A base backup in this directory.
    pub(super) fn base_backup(&self, dir: &std::path::Path, more: &[&str]) {
        let (bin, (user, group)) = (binaries().expect("found before"), owner().expect("found before"));
        let mut copy = Command::new(bin.join("pg_basebackup"));
        copy.args(more).args(["--checkpoint=fast", "--no-sync", "-h", "127.0.0.1", "-U", ROLE]);
        copy.args(["-p", &self.port.to_string(), "-D"]).arg(dir.join("data"));
        copy.current_dir(dir).stdin(Stdio::null());
        become_user(&mut copy, user, group);
        let said = copy.output().expect("pg_basebackup starts");
        assert!(said.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&said.stderr));
    }

    /// A cluster with the data of this one, which is stopped, made by `pg_upgrade`. The new version is the newest of
    /// the machine, which may be the same.
    pub(crate) fn upgraded(&self) -> Self {
        let (bin, (user, group)) = (binaries().expect("found before"), owner().expect("found before"));
        let dir = directory(user, group);
        initdb(&bin, &dir, user, group);
        self.stop();
        let mut upgrade = Command::new(bin.join("pg_upgrade"));
        upgrade.arg("-b").arg(&self.bin).arg("-B").arg(&bin).arg("-d").arg(self.dir.join("data"));
        upgrade.arg("-D").arg(dir.join("data")).args(["-U", ROLE, "--socketdir"]).arg(&dir);
        upgrade.current_dir(&dir).stdin(Stdio::null());
        become_user(&mut upgrade, user, group);
        let said = upgrade.output().expect("pg_upgrade starts");
        assert!(said.status.success(), "pg_upgrade: {}", String::from_utf8_lossy(&said.stdout));
        Self::start_in(&bin, &dir, user, group)
    }
}

impl Backup {
    /// Restores it in another directory, up to this instant, and starts a cluster there.
    pub(crate) fn restored_to(self, instant: &str) -> Cluster {
        let settings = format!(
            "restore_command = 'cp {}/%f %p'\nrecovery_target_time = '{instant}'\nrecovery_target_action = promote\n\
             archive_mode = off\n",
            self.archive.display()
        );
        let data = self.dir.join("data");
        let (bin, (user, group)) = (binaries().expect("found before"), owner().expect("found before"));
        let mut all = std::fs::read_to_string(data.join("postgresql.auto.conf")).expect("there");
        all += &settings;
        std::fs::write(data.join("postgresql.auto.conf"), all).expect("written");
        std::fs::write(data.join("recovery.signal"), "").expect("written");
        let cluster = Cluster::start_in(&bin, &self.dir, user, group);
        eventually("it is promoted", PATIENCE, || {
            wait(async {
                let mut session =
                    PgConnection::connect(&cluster.url("postgres")).await.map_err(|e| e.to_string())?;
                let row = sqlx::query("SELECT pg_is_in_recovery()").fetch_one(&mut session).await;
                match row.map(|row| row.get::<bool, _>(0)) {
                    Ok(false) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
        });
        cluster
    }
}

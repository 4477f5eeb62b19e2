//! `--context-parallel` from outside: real processes under each MPI that is installed, also killed and differing ones.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{build_command, root, set_up, target_folder};

/// The starters that are tried, each with what it needs to start more processes than there are cores, as root too.
pub const STARTERS: [(&str, &[&str]); 3] =
    [("mpirun.openmpi", &["--oversubscribe", "--allow-run-as-root"]), ("mpirun.mpich", &[]), ("mpirun", &[])];
pub const REMEDY: &str = "no mpirun is found; install an MPI (Debian: apt-get install openmpi-bin, or mpich)";
/// How many processes run, of which one is killed.
const RANKS: usize = 3;
/// How long the processes of one run may take to end after one of them is gone.
const SECONDS: Duration = Duration::from_secs(20);

/// How often a process is killed, unless that is said.
const KILLS: u32 = 20;

pub fn check_mpi(arguments: &[String]) -> Result<()> {
    let kills = match arguments {
        [] => KILLS,
        [name, kills] if name == "--kills" => kills.parse().context("--kills is no number")?,
        _ => bail!("expected --kills N"),
    };
    let command = build_command()?;
    set_up(Command::new(&command).current_dir(root()))?;
    let folder = target_folder()?.join("check-mpi");
    fs::create_dir_all(&folder)?;
    let mut found = Vec::new();
    for (starter, options) in STARTERS {
        // The plain name is one of the two others where these are there.
        if (found.is_empty() || starter != "mpirun") && version(starter).is_some() {
            found.push((starter, options));
        }
    }
    ensure!(!found.is_empty(), REMEDY);
    for (starter, options) in found {
        eprintln!("\n{}", version(starter).unwrap_or_default());
        let run = Run { starter, options, command: &command, folder: &folder };
        run.pictures()?;
        run.refusals()?;
        run.killed(kills)?;
    }
    Ok(())
}

pub fn version(starter: &str) -> Option<String> {
    let output = Command::new(starter).arg("--version").output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

struct Run<'a> {
    starter: &'a str,
    options: &'a [&'a str],
    command: &'a Path,
    folder: &'a Path,
}

impl Run<'_> {
    /// The command by so many processes, in the folder of this check.
    fn of(&self, ranks: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.starter);
        command.args(self.options).args(["-n", &ranks.to_string()]).arg(self.command);
        command.args(["--engine"]).arg(root().join("models/emoji")).args(["--threads", "1"]).args(arguments);
        command.current_dir(self.folder);
        command
    }

    /// Each number of processes and each method makes the picture that one process makes.
    fn pictures(&self) -> Result<()> {
        let (latents, picture) = (self.folder.join("latents.safetensors"), self.folder.join("picture.png"));
        // Few steps: more processes than cores wait for each other.
        let asked = ["--prompt", "lemon", "--cache", "f8b8w1", "--steps", "5", "--count", "2"];
        let mut alone = Command::new(self.command);
        alone.arg("--engine").arg(root().join("models/emoji")).args(asked).arg("--save-latents").arg(&latents);
        ends(alone.current_dir(self.folder), 0, "")?;
        for (ranks, method) in [(2, "ulysses"), (2, "gather"), (3, "ulysses=3"), (4, "gather=4")] {
            let mut arguments = asked.to_vec();
            arguments.extend(["--context-parallel", method, "--tolerance", "1e-5", "--output", "picture.png"]);
            arguments.extend(["--trace", "trace.json", "--check-outputs", "latents.safetensors"]);
            let said = ends(&mut self.of(ranks, &arguments), 0, "latents equal those of")?;
            // One process prints and writes, and says what was exchanged.
            ensure!(said.matches("latents equal").count() == 1, "several processes report:\n{said}");
            ensure!(said.contains(&format!("ranks    {ranks} by")), "nothing about ranks:\n{said}");
            let trace = fs::read_to_string(self.folder.join("trace.json"))?;
            ensure!(trace.contains("\"exchanged\""), "a trace without what was exchanged");
            for seed in 0..2 {
                let written = picture.with_file_name(format!("picture-{seed}.png"));
                fs::remove_file(&written).with_context(|| format!("{} is missing", written.display()))?;
            }
        }
        Ok(())
    }

    /// What is wrong ends all processes with the exit code of the one that finds it.
    fn refusals(&self) -> Result<()> {
        let lemon = ["--prompt", "lemon", "--context-parallel"];
        for (ranks, more, code, words) in [
            (2, &["ulysses=3"][..], 2, "asks for 3 processes, and MPI has started 2"),
            (1, &["gather"], 2, "has no effect on one process"),
            (2, &["ring"], 2, "expected `ulysses` or `gather`"),
            (2, &["gather", "--cache", "f8b8", "--provider", "openvino"], 2, "takes the provider `cpu` so far"),
            (2, &["gather", "--steps", "0"], 2, "steps"),
            (2, &["gather", "--output", "nowhere/picture.png"], 9, "nowhere"),
        ] {
            let arguments: Vec<&str> = lemon.iter().chain(more).copied().collect();
            ends(&mut self.of(ranks, &arguments), code, words)?;
        }
        // Each process with a request of its own.
        let script = r#"rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; exec "$0" "$@" --seed "$rank""#;
        let mut command = Command::new(self.starter);
        command.args(self.options).args(["-n", "2", "sh", "-c", script]).arg(self.command);
        command.args(["--engine"]).arg(root().join("models/emoji")).args(lemon).arg("gather");
        ends(command.current_dir(self.folder), 2, "the request of rank 1 differs from that of rank 0")?;
        ensure!(!self.folder.join("out.png").exists(), "a refused request has left a picture");
        Ok(())
    }

    /// One process after the other is killed at moments of its load and its steps: all end, and no file is left.
    fn killed(&self, kills: u32) -> Result<()> {
        for try_ in 0..kills {
            let asked = ["--prompt", "lemon", "--context-parallel", "gather", "--steps", "2000", "--save-latents", "a"];
            let mut command = self.of(RANKS, &asked);
            let log = self.folder.join("killed.log");
            command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
            let mut running = command.spawn().with_context(|| format!("cannot run {}", self.starter))?;
            let moment = u64::from(4000 * try_ / kills);
            let start = Instant::now();
            while processes(self.command)?.len() < RANKS {
                let said = || fs::read_to_string(&log).unwrap_or_default();
                ensure!(running.try_wait()?.is_none() && start.elapsed() < SECONDS, "no process is there:\n{}", said());
                thread::sleep(Duration::from_millis(20));
            }
            thread::sleep(Duration::from_millis(moment));
            let ranks = processes(self.command)?;
            let victim = ranks.get(try_ as usize % RANKS).context("a process has ended by itself")?;
            ensure!(Command::new("kill").args(["-9", victim]).status()?.success(), "cannot kill {victim}");
            let start = Instant::now();
            let status = wait(&mut running)?;
            ensure!(!status.success(), "a run whose process {victim} was killed ended well");
            while !processes(self.command)?.is_empty() {
                ensure!(start.elapsed() < SECONDS, "processes are left {} s after one was killed", SECONDS.as_secs());
                thread::sleep(Duration::from_millis(50));
            }
            eprintln!("killed after {moment} ms: all ended {} ms later", start.elapsed().as_millis());
            for name in ["a", "out.png"] {
                ensure!(!self.folder.join(name).exists(), "a killed run has left {name}");
            }
        }
        Ok(())
    }
}

/// Runs a command, which must end with this code and say these words; gives what it said.
fn ends(command: &mut Command, code: i32, words: &str) -> Result<String> {
    let words_of = std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy);
    let line = words_of.collect::<Vec<_>>().join(" ");
    eprintln!("$ {line}");
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("cannot run {line}"))?;
    let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    if status.code() != Some(code) || !said.contains(words) {
        bail!("expected exit code {code} and `{words}`, but it ended with {status}:\n{said}");
    }
    Ok(said)
}

fn wait(running: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = running.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > SECONDS {
            running.kill()?;
            bail!("the processes go on {} s after one of them was killed", SECONDS.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The processes that run this program.
fn processes(program: &Path) -> Result<Vec<String>> {
    let is_it = |folder: &PathBuf| fs::read_link(folder.join("exe")).is_ok_and(|path| path == program);
    let entries = fs::read_dir("/proc").context("processes are only listed on Linux")?;
    let folders = entries.flatten().map(|entry| entry.path()).filter(is_it);
    Ok(folders.filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned())).collect())
}

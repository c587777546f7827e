//! Runs frames through the pipeline on the host, or through the loaded programs, and compares with the model.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use mgre_tests::fuzz::run::{Budget, Difference, Statistics, on_host};
use mgre_tests::fuzz::{corpus, kernel};

mod keep;

#[derive(Debug, Parser)]
#[command(about)]
struct Arguments {
    /// Stop after so many executions
    #[arg(long, default_value_t = 1_000_000)]
    executions: u64,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// The programs in the kernel, not the pipeline on the host
    #[arg(long)]
    kernel: bool,
    /// Where the random numbers start
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Keep the shortest of so many frames for everything that can become of one, and do no more
    #[arg(long)]
    keep: Option<u64>,
    /// Write the kept samples of a target of cargo-fuzz to files, and do no more
    #[arg(long)]
    unpack: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(target) = &arguments.unpack {
        return done(corpus::unpack(target));
    }
    if let Some(frames) = arguments.keep {
        return done(keep::keep(frames, arguments.seed));
    }
    let time = Duration::from_secs(arguments.seconds);
    let threads = arguments.threads.max(1);
    let budget = Budget { executions: arguments.executions.div_ceil(threads), time };
    if !arguments.kernel {
        // What panics is a difference, and said as such.
        std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    }
    let results: Vec<Result<Statistics, Box<Difference>>> = thread::scope(|scope| {
        let run = |number: u64| {
            let seed = arguments.seed.wrapping_mul(1000).wrapping_add(number);
            if arguments.kernel { kernel::in_kernel(seed, budget, None) } else { on_host(seed, budget, None) }
        };
        let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut all = Statistics::default();
    let mut failed = results.len() as u64 != threads;
    for result in results {
        match result {
            Ok(statistics) => all.add(&statistics),
            Err(difference) => {
                failed = true;
                println!("DIFFERENCE\n{difference}\n");
                if let Err(error) =
                    corpus::add(&corpus::path("pipeline"), [(difference.what, difference.sample)])
                {
                    println!("cannot keep it: {error:#}");
                }
            }
        }
    }
    println!("{all}");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

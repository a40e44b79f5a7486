//! A query of Nexmark in dbsp: JSON lines of files, and the changes of the result into another.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use dbsp::algebra::F64;
use dbsp::operator::{CmpFunc, Max, Min};
use dbsp::typed_batch::IndexedZSetReader;
use dbsp::utils::{Tup1, Tup2, Tup3, Tup4, Tup5, Tup6, Tup7};
use dbsp::{DBData, OrdZSet, RootCircuit, Runtime, Stream, ZWeight};
use serde::{Deserialize, Serialize};

const DAY: i64 = 86_400_000;

#[derive(Deserialize)]
struct Bid<'a> {
    auction: i64,
    bidder: i64,
    price: i64,
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    url: Cow<'a, str>,
    date_time: i64,
    #[serde(borrow)]
    extra: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Auction<'a> {
    id: i64,
    #[serde(borrow)]
    item_name: Cow<'a, str>,
    initial_bid: i64,
    date_time: i64,
    expires: i64,
    seller: i64,
    category: i64,
}

#[derive(Deserialize)]
struct Person<'a> {
    id: i64,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    city: Cow<'a, str>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    date_time: i64,
}

/// A file that is read a part at a time.
struct Feed {
    lines: BufReader<File>,
    per_step: usize,
    /// Takes a line in.
    push: Box<dyn FnMut(&str) -> Result<()> + Send>,
    /// Hands over what was taken in.
    flush: Box<dyn FnMut() + Send>,
}

impl Feed {
    /// Hands over the next lines; false at the end.
    fn step(&mut self, line: &mut String) -> Result<bool> {
        for n in 0..self.per_step {
            line.clear();
            if self.lines.read_line(line)? == 0 {
                (self.flush)();
                return Ok(n > 0);
            }
            (self.push)(line)?;
        }
        (self.flush)();
        Ok(true)
    }
}

/// A circuit that is built.
struct Builder<'a> {
    circuit: &'a RootCircuit,
    data: PathBuf,
    per_epoch: usize,
    feeds: Vec<Feed>,
}

macro_rules! table {
    ($function:ident, $row:ident, $file:literal, $share:literal) => {
        /// The rows of which `of` makes something.
        fn $function<K: DBData>(
            &mut self,
            of: fn($row<'_>) -> Option<K>,
        ) -> Result<Stream<RootCircuit, OrdZSet<K>>> {
            let (stream, handle) = self.circuit.add_input_zset::<K>();
            let rows = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
            let taken = rows.clone();
            self.feeds.push(Feed {
                lines: BufReader::new(File::open(self.data.join($file))?),
                per_step: (self.per_epoch * $share / 50).max(1),
                push: Box::new(move |line| {
                    let row = of(serde_json::from_str(line)?);
                    rows.lock().unwrap().extend(row.map(|row| Tup2(row, 1)));
                    Ok(())
                }),
                flush: Box::new(move || handle.append(&mut taken.lock().unwrap())),
            });
            Ok(stream)
        }
    };
}

impl Builder<'_> {
    table!(bids, Bid, "bid.jsonl", 46);
    table!(auctions, Auction, "auction.jsonl", 3);
    table!(persons, Person, "person.jsonl", 1);
}

/// Writes what changed in a step.
type Output = Box<dyn FnMut(&mut dyn Write) -> Result<()> + Send>;

/// A row on its way out.
struct Row<'a>(&'a mut dyn Write);

impl Row<'_> {
    fn with(&mut self, name: &str, value: impl Serialize) -> &mut Self {
        write!(self.0, ",\"{name}\":").expect("the file takes it");
        serde_json::to_writer(&mut *self.0, &value).expect("the file takes it");
        self
    }
}

fn output<K: DBData>(rows: &Stream<RootCircuit, OrdZSet<K>>, write: fn(&K, &mut Row<'_>)) -> Output {
    let handle = rows.output();
    Box::new(move |out| {
        for (row, (), weight) in handle.consolidate().iter() {
            let change = if weight < 0 { "delete" } else { "insert" };
            for _ in 0..weight.abs() {
                write!(out, "{{\"_change\":\"{change}\"")?;
                write(&row, &mut Row(&mut *out));
                writeln!(out, "}}")?;
            }
        }
        Ok(())
    })
}

/// Rows as they compare.
struct Ascending;

impl<T: Ord> CmpFunc<T> for Ascending {
    fn cmp(left: &T, right: &T) -> Ordering {
        left.cmp(right)
    }
}

fn build(query: &str, b: &mut Builder<'_>) -> Result<Output> {
    Ok(match query {
        "read" => {
            let bids = b.bids(|bid| Some(Tup1(bid.extra.into_owned())))?;
            let counted = bids.map_index(|extra| ((), extra.clone())).weighted_count();
            output(&counted.map(|((), n)| *n), |n: &ZWeight, row| {
                row.with("n", n);
            })
        }
        "q0" => {
            let bids = b.bids(|bid| {
                Some(Tup5(bid.auction, bid.bidder, bid.price, bid.date_time, bid.extra.into_owned()))
            })?;
            output(&bids, |bid, row| {
                row.with("auction", bid.0).with("bidder", bid.1).with("price", bid.2);
                row.with("date_time", bid.3).with("extra", &bid.4);
            })
        }
        "q1" => {
            let bids = b.bids(|bid| {
                Some(Tup5(bid.auction, bid.bidder, bid.price, bid.date_time, bid.extra.into_owned()))
            })?;
            let priced = bids.map(|Tup5(auction, bidder, price, at, extra)| {
                Tup5(*auction, *bidder, F64::new(0.908 * *price as f64), *at, extra.clone())
            });
            output(&priced, |bid, row| {
                row.with("auction", bid.0).with("bidder", bid.1).with("price", bid.2.into_inner());
                row.with("date_time", bid.3).with("extra", &bid.4);
            })
        }
        "q2" => {
            let bids = b.bids(|bid| Some(Tup2(bid.auction, bid.price)))?;
            output(&bids.filter(|bid| bid.0 % 123 == 0), |bid, row| {
                row.with("auction", bid.0).with("price", bid.1);
            })
        }
        "q3" => {
            let auctions = b.auctions(|a| (a.category == 10).then_some(Tup2(a.seller, a.id)))?;
            let persons = b.persons(|p| {
                matches!(&*p.state, "or" | "id" | "ca")
                    .then(|| Tup4(p.id, p.name.into_owned(), p.city.into_owned(), p.state.into_owned()))
            })?;
            let persons = persons.map_index(|p| (p.0, Tup3(p.1.clone(), p.2.clone(), p.3.clone())));
            let joined = auctions.map_index(|a| (a.0, a.1)).join(&persons, |_, id, p| {
                Tup4(p.0.clone(), p.1.clone(), p.2.clone(), *id)
            });
            output(&joined, |joined, row| {
                row.with("name", &joined.0).with("city", &joined.1).with("state", &joined.2);
                row.with("id", joined.3);
            })
        }
        "q4" => {
            let auctions = b.auctions(|a| Some(Tup4(a.id, a.category, a.date_time, a.expires)))?;
            let bids = b.bids(|bid| Some(Tup3(bid.auction, bid.price, bid.date_time)))?;
            let auctions = auctions.map_index(|a| (a.0, Tup3(a.1, a.2, a.3)));
            let bids = bids.map_index(|bid| (bid.0, Tup2(bid.1, bid.2)));
            let joined = auctions.join_index(&bids, |id, a, bid| {
                (a.1..=a.2).contains(&bid.1).then_some((Tup2(*id, a.0), bid.0))
            });
            let prices = joined.aggregate(Max).map_index(|(auction, price)| (auction.1, *price));
            let sums = prices.aggregate_linear(|price| Tup2(1_i64, *price));
            output(&sums.map(|(category, sum)| Tup3(*category, sum.0, sum.1)), |sum, row| {
                row.with("category", sum.0).with("mean", sum.2 as f64 / sum.1 as f64);
            })
        }
        "q5" => {
            let bids = b.bids(|bid| Some(Tup2(bid.auction, bid.date_time)))?;
            let hops = bids.flat_map_index(|Tup2(auction, at)| {
                let (auction, last) = (*auction, at.div_euclid(2_000) * 2_000);
                (0..5).map(move |nth| (Tup2(auction, last - nth * 2_000), ()))
            });
            let counts = hops.weighted_count().map_index(|(of, n)| (of.1, Tup2(of.0, *n)));
            let most = counts.map_index(|(window, count)| (*window, count.1)).aggregate(Max);
            let joined = counts.join_flatmap(&most, |_, count, most| (count.1 >= *most).then_some(*count));
            output(&joined, |count, row| {
                row.with("auction", count.0).with("num", count.1);
            })
        }
        "q7" => {
            let bids = b.bids(|bid| Some(Tup4(bid.auction, bid.price, bid.bidder, bid.date_time)))?;
            let bids = bids.map_index(|bid| (bid.3.div_euclid(10_000), *bid));
            let most = bids.map_index(|(window, bid)| (*window, bid.1)).aggregate(Max);
            let joined = bids.join_flatmap(&most, |_, bid, most| (bid.1 == *most).then_some(*bid));
            output(&joined, |bid, row| {
                row.with("auction", bid.0).with("price", bid.1).with("bidder", bid.2).with("date_time", bid.3);
            })
        }
        "q8" => {
            let persons = b.persons(|p| {
                Some(Tup3(p.id, p.name.into_owned(), p.date_time.div_euclid(10_000) * 10_000))
            })?;
            let auctions = b.auctions(|a| Some(Tup2(a.seller, a.date_time.div_euclid(10_000) * 10_000)))?;
            let persons = persons.distinct().map_index(|p| (Tup2(p.0, p.2), p.1.clone()));
            let auctions = auctions.distinct().map_index(|a| (*a, ()));
            let joined = persons.join(&auctions, |of, name, ()| Tup3(of.0, name.clone(), of.1));
            output(&joined, |person, row| {
                row.with("id", person.0).with("name", &person.1).with("w", person.2);
            })
        }
        "q9" => {
            let auctions = b.auctions(|a| {
                Some(Tup6(a.id, a.item_name.into_owned(), a.category, a.seller, a.date_time, a.expires))
            })?;
            let bids = b.bids(|bid| Some(Tup4(bid.auction, bid.price, bid.date_time, bid.bidder)))?;
            let auctions = auctions.map_index(|a| (a.0, Tup5(a.1.clone(), a.2, a.3, a.4, a.5)));
            let bids = bids.map_index(|bid| (bid.0, Tup3(bid.1, bid.2, bid.3)));
            let joined = auctions.join_index(&bids, |id, a, bid| {
                let row = || Tup6(-bid.0, bid.1, bid.2, a.0.clone(), a.1, a.2);
                (a.3..=a.4).contains(&bid.1).then(|| (*id, row()))
            });
            let winning = joined.topk_asc(1).map(|(id, of)| {
                Tup7(*id, of.0, of.1, of.2, of.3.clone(), of.4, of.5)
            });
            output(&winning, |of, row| {
                row.with("id", of.0).with("item_name", &of.4).with("category", of.5).with("seller", of.6);
                row.with("bidder", of.3).with("price", -of.1).with("bid_time", of.2);
            })
        }
        "q17" => {
            let bids = b.bids(|bid| Some(Tup3(bid.auction, bid.date_time.div_euclid(DAY) * DAY, bid.price)))?;
            let bids = bids.map_index(|bid| (Tup2(bid.0, bid.1), bid.2));
            let sums = bids.aggregate_linear(|price| {
                let (low, middle) = (*price < 10_000, (10_000..1_000_000).contains(price));
                Tup4(1_i64, i64::from(low), i64::from(middle), *price)
            });
            let (least, most) = (bids.aggregate(Min), bids.aggregate(Max));
            let ends = least.join_index(&most, |of, least, most| Some((*of, Tup2(*least, *most))));
            let all = sums.join(&ends, |of, sums, ends| Tup3(*of, *sums, *ends));
            output(&all, |Tup3(of, sums, ends), row| {
                row.with("auction", of.0).with("day", of.1).with("total", sums.0).with("rank1", sums.1);
                row.with("rank2", sums.2).with("least", ends.0).with("most", ends.1).with("sum", sums.3);
                row.with("mean", sums.3 as f64 / sums.0 as f64);
            })
        }
        "q18" => {
            let bids = b.bids(|bid| {
                let (channel, url, extra) = (bid.channel.into_owned(), bid.url.into_owned(), bid.extra.into_owned());
                Some(Tup7(bid.bidder, bid.auction, -bid.date_time, bid.price, extra, channel, url))
            })?;
            let by = bids.map_index(|bid| {
                let row = Tup5(bid.2, bid.3, bid.4.clone(), bid.5.clone(), bid.6.clone());
                (Tup2(bid.0, bid.1), row)
            });
            let last = by.topk_asc(1).map(|(of, bid)| Tup2(*of, bid.clone()));
            output(&last, |Tup2(of, bid), row| {
                row.with("auction", of.1).with("bidder", of.0).with("price", bid.1).with("channel", &bid.3);
                row.with("url", &bid.4).with("date_time", -bid.0).with("extra", &bid.2);
            })
        }
        "q19" => {
            let bids = b.bids(|bid| Some(Tup4(bid.auction, -bid.price, bid.date_time, bid.bidder)))?;
            let by = bids.map_index(|bid| (bid.0, Tup3(bid.1, bid.2, bid.3)));
            let top = by.topk_row_number_custom_order::<Ascending, _, _>(10, |k, bid| Tup2(k, *bid));
            output(&top.map(|(auction, of)| Tup2(*auction, *of)), |Tup2(auction, Tup2(k, bid)), row| {
                row.with("auction", auction).with("bidder", bid.2).with("price", -bid.0);
                row.with("date_time", bid.1).with("k", k);
            })
        }
        "q20" => {
            let bids = b.bids(|bid| Some(Tup4(bid.auction, bid.bidder, bid.price, bid.channel.into_owned())))?;
            let auctions = b.auctions(|a| {
                (a.category == 10).then(|| Tup4(a.id, a.item_name.into_owned(), a.initial_bid, a.seller))
            })?;
            let auctions = auctions.map_index(|a| (a.0, Tup3(a.1.clone(), a.2, a.3)));
            let bids = bids.map_index(|bid| (bid.0, Tup3(bid.1, bid.2, bid.3.clone())));
            let joined = bids.join(&auctions, |auction, bid, a| {
                Tup7(*auction, bid.0, bid.1, bid.2.clone(), a.0.clone(), a.1, a.2)
            });
            output(&joined, |of, row| {
                row.with("auction", of.0).with("bidder", of.1).with("price", of.2).with("channel", &of.3);
                row.with("item_name", &of.4).with("initial_bid", of.5).with("seller", of.6);
            })
        }
        "q22" => {
            let bids = b.bids(|bid| {
                Some(Tup5(bid.auction, bid.bidder, bid.price, bid.channel.into_owned(), bid.url.into_owned()))
            })?;
            let split = bids.map(|bid| {
                let mut parts = bid.4.split('/').skip(3).map(str::to_owned);
                let mut part = || parts.next().unwrap_or_default();
                Tup7(bid.0, bid.1, bid.2, bid.3.clone(), part(), part(), part())
            });
            output(&split, |bid, row| {
                row.with("auction", bid.0).with("bidder", bid.1).with("price", bid.2).with("channel", &bid.3);
                row.with("dir1", &bid.4).with("dir2", &bid.5).with("dir3", &bid.6);
            })
        }
        other => bail!("no such query: {other}"),
    })
}

fn main() -> Result<()> {
    let (query, data) = (env::var("QUERY")?, env::var("DATA")?);
    let per_epoch: usize = env::var("EPOCH")?.parse()?;
    let mut out = BufWriter::new(File::create(env::var("OUTPUT")?)?);
    let (mut circuit, (mut feeds, mut output)) = Runtime::init_circuit(1, move |circuit| {
        let data = Path::new(&data).to_owned();
        let mut builder = Builder { circuit, data, per_epoch, feeds: Vec::new() };
        let output = build(&query, &mut builder)?;
        Ok((builder.feeds, output))
    })?;
    let mut line = String::new();
    loop {
        let mut has_more = false;
        for feed in &mut feeds {
            has_more |= feed.step(&mut line)?;
        }
        if !has_more {
            break;
        }
        circuit.transaction()?;
        output(&mut out)?;
    }
    out.flush()?;
    println!("done");
    // It stays, to be measured.
    loop {
        std::thread::park();
    }
}

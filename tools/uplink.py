"""Brings a new version of a file to a receiver that has an old one, in as few bytes as can be.

  python tools/uplink.py --old=a.tflite --new=b.tflite --output=update.okdu
  python tools/uplink.py --old=a.tflite --new=b.tflite --output=update.packets --packet_bytes=256 --apid=42
  python tools/uplink.py --old=a.tflite --apply=update.okdu --output=b.tflite
  python tools/uplink.py --packets=update.packets --resend=3,7-9 --output=again.packets
  python tools/uplink.py --old=a.tflite --apply=received.packets,again.packets --output=b.tflite

Every method is tried and the smallest is written; --apply writes the new file whole, equal in SHA-256, or nothing.
"""

from __future__ import annotations

from absl import flags

from orbit_kd_tools.common import FLAGS, required, run

flags.DEFINE_string("old", None, "The file that the receiver has.")
flags.DEFINE_string("new", None, "The file that it shall have.")
flags.DEFINE_string("output", None, "What to write: the update, its packets, or with --apply the new file.")
flags.DEFINE_list("methods", [], "Methods to try, comma-separated; all of them by default.")
flags.DEFINE_integer("packet_bytes", None, "Write CCSDS space packets of at most so many bytes.", lower_bound=1)
flags.DEFINE_integer("apid", 1, "Application process identifier of the packets, 0 to 2046.")
flags.DEFINE_list("apply", [], "The update to apply; or received packets, in one file or several.")
flags.DEFINE_string("packets", None, "The file of packets that was sent, for --resend.")
flags.DEFINE_string("resend", None, "Numbers of packets to send again, as --apply names them: 3,7-9.")


def main() -> None:
    required("output")

    from orbit_kd.flight.uplink import apply_update, make_update
    from orbit_kd.flight.uplink.packets import join, numbers_of, resend, split
    from orbit_kd.flight.uplink.update import MAGIC
    from orbit_kd.support.files import write_file
    from orbit_kd.tflite.reader import read_bytes

    if FLAGS.resend:
        required("packets")
        write_file(FLAGS.output, resend(read_bytes(FLAGS.packets), numbers_of(FLAGS.resend)))
        print(f"packets {FLAGS.resend} again: {FLAGS.output}")
        return
    required("old")
    old = read_bytes(FLAGS.old)
    if FLAGS.apply:
        received = [read_bytes(path) for path in FLAGS.apply]
        update = received[0] if len(received) == 1 and received[0].startswith(MAGIC) else join(received)
        new = apply_update(old, update)
        write_file(FLAGS.output, new)
        print(f"{FLAGS.output}: {len(new):,} bytes, equal to the sender's file in SHA-256")
        return
    required("new")
    made = make_update(old, read_bytes(FLAGS.new), among=FLAGS.methods or None)
    for name, size in sorted(made.sizes.items(), key=lambda item: item[1]):
        print(f"{name:10} {size:>10,} bytes")
    for name, why in made.refused.items():
        print(f"{name:10} not for these files: {why}")
    packets = split(made.data, packet_bytes=FLAGS.packet_bytes, apid=FLAGS.apid) if FLAGS.packet_bytes else []
    written = b"".join(packets) or made.data
    write_file(FLAGS.output, written)
    about = f" in {len(packets)} space packets" if packets else ""
    print(f"{FLAGS.output}: {len(written):,} bytes{about} ({made.method})")


if __name__ == "__main__":
    run(main, tensorflow=False)

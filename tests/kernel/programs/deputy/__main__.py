"""argv: SCENE plain|noatime FOLDER. Opens files as somebody who may not open all of them.

Starts as root, in FOLDER, which the test has filled. Prints what came of each open: the error,
or what is in the file. `noatime` adds O_NOATIME to every one of them.
"""

import os

from acting import folder, scene
from confinement import landlock
from descriptors import descriptors, setfl
from files import create, lease, special, truncate
from names import magic, resolve
from repeating import again
from roots import chroot, mounts
from users import groups, threads, userns

SCENES = (
    chroot, mounts, userns, groups, threads, magic, resolve, special, truncate, create, lease,
    landlock, setfl, descriptors, again,
)  # fmt: skip

os.chdir(folder)
{each.__name__: each for each in SCENES}[scene]()

"""What layers are good for: edits replayed on predicted layers and on the true ones, and the two results compared.

For every true peel and every kind of edit the same edit is made in both stacks, both are flattened over white, and the
flat images are compared by PSNR and LPIPS. No published protocol is followed; the choices, and why they are as they
are:

**What is edited: peels**, as the main metric groups the true layers (LayerD protocol, sec. 1.2). Layers of a peel have
no order among themselves, so no image tells whether they are one layer or many, and the network is asked for as many
layers as there are peels. Layers that show nowhere are left out: no image tells of them.

**Which predicted layers stand for a peel** (:func:`.edits.counterparts`): a person takes the layers in which they see
the thing, all of them. So a predicted layer belongs to the peel with which its visible share, or to the one with a
member of which its visible share, has the largest soft IoU. IoU and not overlap, because a small thing in a layer with
haze overlaps the background most; visible shares and not alpha, because a copy that is hidden under the thing is not
seen and so not taken, and appears once the thing is gone. It follows that

- a thing split over two layers is edited whole;
- two things in one layer go together: the layer belongs to the one it is more like, and is edited with it, the other
  along; the other one has no layer and its edits cannot be made;
- an edit that cannot be made leaves the image as it was. To edit the layer that holds most of the thing instead would
  take along whatever else is in it, which nobody wants, and ``psnr_changed``, blind to the rest, would praise it: with
  the whole image the thing moves too. ``reached`` says how often an edit could be made at all;
- the composite as the only layer stands for the peel that fills most of the image, and can make no edit of another.

**Edits** have no chance in them and no parameter that hangs on a stack, so both sides get the same one:

==========  ==========================================================================  ====================
kind        what                                                                        of which peels
==========  ==========================================================================  ====================
delete      taken out                                                                   all
move        right and down by an eighth of the canvas, whole pixels; what leaves the    all but the bottom
            canvas is lost, what comes in is transparent
recolour    each colour becomes its negative, 1 - value                                 all
fade        alpha times 0.5                                                             all
reorder     to the top                                                                  all but bottom and top
==========  ==========================================================================  ====================

Bottom and top are those of the peels that show. The bottom one stays where it is: nobody moves a background, and on top
it hides everything. The negative changes black and white, which a change of hue does not, keeps differences of colours
as they are, and, being affine, does not mind how a thing is split. An edit that changes no pixel of the true image by
more than :data:`.scores.CHANGE`, such as white on white deleted, is no edit and left out; a kind that is left with
none is absent, never 0.

Where a prediction flattens to the image exactly, a thing in one layer has the PSNR of its deletion plus 6.02 dB when
it fades: half alpha is the mean of the image with it and without it. ``fade`` says something of its own by LPIPS, and
by PSNR where layers do not flatten to the image or lie over each other.
"""
